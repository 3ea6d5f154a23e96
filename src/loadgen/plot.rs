//! Charts in SVG: latencies of runs, and cost over prompt and context length.

use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, IntoLogRange, LineSeries, PathElement,
        RGBColor, SVGBackend, WHITE,
    },
};

use super::result::{Latency, LoadResult};

/// Size in pixels.
const SIZE: (u32, u32) = (1000, 420);

/// A palette for colour-blind readers (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

type Drawn = Result<(), Box<dyn std::error::Error>>;

/// A chart of named runs.
///
/// # Errors
/// When there is no data.
pub fn svg(runs: &[(String, &LoadResult)]) -> Result<String, String> {
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        draw(&area, runs).map_err(|error| format!("cannot draw the chart: {error}"))?;
    }
    Ok(out)
}

/// Cost of one length: minimum, median and maximum of several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LengthCost {
    /// Tokens of the prompt, which is the context of the first generated token.
    pub tokens: usize,
    /// Time to the first token.
    pub ttft_ms: [f64; 3],
    /// Decode speed in tokens per second.
    pub decode: [f64; 3],
}

/// A chart of decode speed over context and time to first token over prompt length.
///
/// # Errors
/// When there is no data.
pub fn lengths_svg(costs: &[LengthCost]) -> Result<String, String> {
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        let (left, right) = area.split_horizontally(SIZE.0 / 2);
        area.fill(&WHITE)
            .map_err(Into::into)
            .and_then(|()| over_length(&left, "Tokens per second over context", costs, |cost| cost.decode))
            .and_then(|()| over_length(&right, "TTFT over prompt length, ms", costs, |cost| cost.ttft_ms))
            .and_then(|()| Ok(area.present()?))
            .map_err(|error| format!("cannot draw the chart: {error}"))?;
    }
    Ok(out)
}

/// One quantity over the length, with an axis from zero.
#[expect(clippy::cast_precision_loss, reason = "token counts")]
fn over_length(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    caption: &str,
    costs: &[LengthCost],
    of: impl Fn(&LengthCost) -> [f64; 3],
) -> Drawn {
    let (_, max) = bounds(costs.iter().flat_map(&of))?;
    let end = costs.iter().map(|cost| cost.tokens).max().unwrap_or(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(55)
        .build_cartesian_2d(0.0..end * 1.05, 0.0..max)?;
    chart
        .configure_mesh()
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()?;
    let colour = COLOURS[0];
    let mut costs: Vec<_> = costs.iter().collect();
    costs.sort_by_key(|cost| cost.tokens);
    let medians = costs.iter().map(|cost| (cost.tokens as f64, of(cost)[1]));
    chart.draw_series(LineSeries::new(medians, colour.stroke_width(2)).point_size(3))?;
    chart.draw_series(costs.iter().map(|cost| {
        let (at, [min, _, max]) = (cost.tokens as f64, of(cost));
        PathElement::new(vec![(at, min), (at, max)], colour.mix(0.6))
    }))?;
    Ok(())
}

fn draw(area: &DrawingArea<SVGBackend<'_>, Shift>, runs: &[(String, &LoadResult)]) -> Drawn {
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(SIZE.0 / 2);
    percentiles(&left, runs)?;
    course(&right, runs)?;
    area.present()?;
    Ok(())
}

/// Position of a percentile on an axis where 90, 99 and 99.9 are equally far apart.
fn nines(percentile: f64) -> f64 {
    -((100.0 - percentile).max(0.01) / 100.0).log10()
}

fn percentiles(area: &DrawingArea<SVGBackend<'_>, Shift>, runs: &[(String, &LoadResult)]) -> Drawn {
    let waits: [(&str, Latency); 3] =
        [("TTFT", |r| &r.ttft_ms), ("ITL", |r| &r.itl_ms), ("E2E", |r| &r.e2e_ms)];
    let all = runs.iter().flat_map(|(_, run)| waits.iter().flat_map(|(_, wait)| &wait(run).percentiles));
    let (min, max) = bounds(all.map(|(_, ms)| *ms))?;
    let mut chart = ChartBuilder::on(area)
        .caption("Waits by percentile, ms", ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(55)
        .build_cartesian_2d(0.0..4.0, (min..max).log_scale())?;
    let label = |x: &f64| match x.round() {
        n if n < 1.0 => "0".to_owned(),
        n => format!("{}", 100.0 - 10f64.powf(2.0 - n)),
    };
    chart.configure_mesh().x_labels(5).x_label_formatter(&label).y_label_formatter(&|y| shown(*y)).draw()?;
    let mut colours = COLOURS.iter().cycle();
    for (name, run) in runs {
        for (wait, of) in waits {
            let Some(colour) = colours.next() else { continue };
            let points = of(run).percentiles.iter().map(|(percentile, ms)| (nines(*percentile), *ms));
            let title = if runs.len() > 1 { format!("{name}: {wait}") } else { wait.to_owned() };
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
                .label(title)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
    }
    chart
        .configure_series_labels()
        .border_style(RGBColor(160, 160, 160))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}

fn course(area: &DrawingArea<SVGBackend<'_>, Shift>, runs: &[(String, &LoadResult)]) -> Drawn {
    let points = || runs.iter().flat_map(|(_, run)| &run.course);
    let (min, max) = bounds(points().flat_map(|[_, first, total]| [*first, *total]))?;
    let end = points().map(|point| point[0]).fold(0.0, f64::max).max(0.001);
    let mut chart = ChartBuilder::on(area)
        .caption("First token and end by time of asking", ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(55)
        .build_cartesian_2d(0.0..end, (min..max).log_scale())?;
    chart
        .configure_mesh()
        .x_label_formatter(&|x| format!("{} s", shown(*x)))
        .y_label_formatter(&|y| shown(*y))
        .draw()?;
    for (at, (_, run)) in runs.iter().enumerate() {
        for (which, lane) in [(1, 2 * at), (2, 2 * at + 1)] {
            let colour = COLOURS[lane % COLOURS.len()].mix(0.5);
            chart.draw_series(
                run.course.iter().map(|point| Circle::new((point[0], point[which]), 2, colour.filled())),
            )?;
        }
    }
    Ok(())
}

/// Range of the positive values, with a margin.
fn bounds(values: impl Iterator<Item = f64>) -> Result<(f64, f64), &'static str> {
    let (min, max) =
        values.filter(|v| *v > 0.0).fold((f64::INFINITY, 0.0), |(a, b), v| (f64::min(a, v), f64::max(b, v)));
    if max > 0.0 { Ok((min / 1.3, max * 1.3)) } else { Err("nothing was measured") }
}

fn shown(value: f64) -> String {
    let digits = if value >= 10.0 {
        0
    } else if value >= 1.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}
