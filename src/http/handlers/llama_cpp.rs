//! llama-server's routes about the server: `GET /props` and `GET /slots`.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    http::{
        error::ApiError,
        middleware::auth::{self, check_model},
        request::GenerationSettings,
        state::AppState,
    },
    job::Sampling,
    text::Text,
    units::Tokens,
};

/// The answer of `/props`.
#[derive(Serialize, ToSchema)]
pub(crate) struct LlamaProps<'a> {
    default_generation_settings: DefaultSettings,
    /// Number of slots, one for each device.
    total_slots: usize,
    model_alias: &'a str,
    /// The name of the model: paths of the server are not shown.
    model_path: &'a str,
    modalities: Modalities,
    /// Always true.
    endpoint_slots: bool,
    /// Always false: properties cannot be changed.
    endpoint_props: bool,
    /// Always true.
    endpoint_metrics: bool,
    chat_template: &'a str,
    bos_token: &'a str,
    eos_token: String,
    build_info: &'static str,
    /// Always false.
    is_sleeping: bool,
}

/// Settings of requests that send none.
#[derive(Serialize, ToSchema)]
struct DefaultSettings {
    /// The context length.
    n_ctx: Tokens,
    params: GenerationSettings,
}

/// What else than text the model takes: nothing.
#[derive(Serialize, ToSchema)]
struct Modalities {
    vision: bool,
    audio: bool,
}

/// A slot, as `/slots` lists it.
#[derive(Serialize, ToSchema)]
pub(crate) struct LlamaSlot {
    id: usize,
    /// The number of its request; -1 when it is idle.
    id_task: i64,
    /// The context length.
    n_ctx: Tokens,
    /// Whether tokens are drafted.
    speculative: bool,
    is_processing: bool,
    next_token: NextToken,
}

/// How far the answer of a slot is.
#[derive(Default, Serialize, ToSchema)]
struct NextToken {
    has_next_token: bool,
    /// Tokens that the answer may still have.
    n_remain: usize,
    n_decoded: usize,
}

/// `GET /props`: of the default model.
pub(crate) async fn props(
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let text = auth::model(&request, &state, None)?;
    let card = text.card();
    Ok(HttpResponse::Ok().json(LlamaProps {
        default_generation_settings: default_settings(&state, text),
        total_slots: state.executor.snapshot().slots,
        model_alias: &card.id,
        model_path: &card.id,
        modalities: Modalities { vision: false, audio: false },
        endpoint_slots: true,
        endpoint_props: false,
        endpoint_metrics: true,
        chat_template: text.templates().next().map_or("", |template| template.source().text()),
        bos_token: text.bos().unwrap_or_default(),
        eos_token: card.end_tokens.first().map_or_else(String::new, |end| text.token(*end).text),
        build_info: concat!("eka ", env!("CARGO_PKG_VERSION")),
        is_sleeping: false,
    }))
}

fn default_settings(state: &AppState, text: &Text) -> DefaultSettings {
    let of_model = state.sampling_defaults(text);
    let own = Sampling::greedy();
    let sampling = Sampling {
        temperature: of_model.temperature.unwrap_or(1.0),
        top_k: of_model.top_k.unwrap_or(own.top_k),
        top_p: of_model.top_p.unwrap_or(own.top_p),
        min_p: of_model.min_p.unwrap_or(own.min_p),
        repetition_penalty: of_model.repetition_penalty.unwrap_or(own.repetition_penalty),
        ..own
    };
    let params = GenerationSettings::new(&sampling, state.settings.default_max_new);
    DefaultSettings { n_ctx: state.context_length(text), params }
}

/// `GET /slots`.
pub(crate) async fn slots(
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let n_ctx = state.context_length(auth::model(&request, &state, None)?);
    let snapshot = state.executor.snapshot();
    let slot = |id| {
        let running = snapshot.running.iter().find(|running| running.slot == id);
        let idle = LlamaSlot {
            id,
            id_task: -1,
            n_ctx,
            speculative: false,
            is_processing: running.is_some(),
            next_token: NextToken::default(),
        };
        // Only that the slot is busy is shown to keys that may not use the model.
        let shown = running.filter(|running| check_model(&request, &running.job.model.0).is_ok());
        let Some(running) = shown else { return idle };
        let n_decoded = running.generated.0;
        let n_remain = running.job.max_new.0.saturating_sub(n_decoded);
        LlamaSlot {
            id_task: i64::try_from(running.job.id.0).unwrap_or(i64::MAX),
            next_token: NextToken { has_next_token: n_remain > 0, n_remain, n_decoded },
            ..idle
        }
    };
    Ok(HttpResponse::Ok().json((0..snapshot.slots).map(slot).collect::<Vec<_>>()))
}
