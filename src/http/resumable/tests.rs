use super::*;

const KIND: StreamKind = StreamKind { route: "/a", content_type: "text/event-stream", heartbeats: ["", ""] };

fn streams(limit: usize) -> ResumableStreams {
    let limit = units::Bytes(limit as u64);
    ResumableStreams::new(Duration::from_secs(60), limit, Arc::new(Metrics::new()))
}

fn events(count: usize, bytes: usize) -> Vec<Bytes> {
    (0..count).map(|_| Bytes::from(vec![b'x'; bytes])).collect()
}

/// The numbers of the events in `read`.
fn numbers(read: Read) -> Vec<u64> {
    let Read::Events(bytes) = read else { panic!("{read:?}") };
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let ids = text.split("id: ").filter(|event| !event.is_empty());
    ids.map(|event| Position::parse(event.lines().next().unwrap()).after).collect()
}

fn at(id: &str, after: u64) -> Position {
    Position { id: id.to_owned(), after }
}

#[test]
fn a_position_is_an_id_with_or_without_a_number() {
    assert_eq!(Position::parse("stream_a:17"), at("stream_a", 17));
    assert_eq!(Position::parse("stream_a"), at("stream_a", 0));
    assert_eq!(Position::parse("stream_a:x"), at("stream_a:x", 0));
    assert_eq!(Position::parse("a:99999999999999999999999"), at("a:99999999999999999999999", 0));
    assert_eq!(Position::parse(""), at("", 0));
}

#[tokio::test]
async fn a_client_reads_on_after_the_last_event_that_it_has() {
    let all = streams(1 << 20);
    let (mut writer, mut reader) = all.begin(None, KIND).unwrap();
    let id = writer.id().to_owned();
    writer.write(events(3, 8)).await.unwrap();
    assert_eq!(numbers(reader.next().await), [1, 2, 3]);
    drop(reader);
    writer.write(events(2, 8)).await.unwrap();
    let (mut reader, _) = all.resume(&at(&id, 2), None, Some("/a")).unwrap();
    assert_eq!(numbers(reader.next().await), [3, 4, 5]);
    let ending = tokio::spawn(writer.end(events(1, 8)));
    assert_eq!(numbers(reader.next().await), [6]);
    assert_eq!(reader.next().await, Read::End);
    let (mut again, _) = all.resume(&at(&id, 5), None, None).unwrap();
    assert_eq!(numbers(again.next().await), [6], "after the end");
    assert_eq!(reader.next().await, Read::Closed, "the later connection reads");
    ending.abort();
}

#[tokio::test]
async fn a_stream_belongs_to_its_key_and_its_route() {
    let all = streams(1 << 20);
    let (writer, _reader) = all.begin(Some("alice"), KIND).unwrap();
    let resume = |owner, route, after| all.resume(&at(writer.id(), after), owner, route).map(drop);
    assert_eq!(resume(Some("bob"), None, 0), Err(ResumeError::NotFound));
    assert_eq!(resume(None, None, 0), Err(ResumeError::NotFound));
    assert_eq!(resume(Some("alice"), Some("/b"), 0), Err(ResumeError::NotFound));
    assert_eq!(resume(Some("alice"), None, 1), Err(ResumeError::NoSuchEvent { last: 0 }));
    assert_eq!(resume(Some("alice"), None, u64::MAX), Err(ResumeError::NoSuchEvent { last: 0 }));
    resume(Some("alice"), Some("/a"), 0).unwrap();
    assert!(!all.delete(writer.id(), Some("bob")) && all.delete(writer.id(), Some("alice")));
    assert_eq!(resume(Some("alice"), None, 0), Err(ResumeError::NotFound));
}

#[tokio::test]
async fn events_that_the_client_has_taken_make_room_and_a_stream_without_its_client_is_cut() {
    let all = streams(STREAM_FRACTION * 8192);
    let (mut writer, mut reader) = all.begin(None, KIND).unwrap();
    for _ in 0..10 {
        writer.write(events(2, 512)).await.unwrap();
        reader.next().await;
    }
    assert!(all.kept().bytes <= 8192, "{}", all.kept().bytes);
    assert!(matches!(
        all.resume(&at(writer.id(), 0), None, None).map(drop),
        Err(ResumeError::Dropped { first: 2.. })
    ));
    all.resume(&at(writer.id(), 19), None, None).map(drop).unwrap();
    drop(reader);
    assert_eq!(writer.write(events(20, 512)).await, Err(Abandoned::NoRoom));
    let id = writer.id().to_owned();
    drop(writer);
    assert_eq!(all.resume(&at(&id, 0), None, None).map(drop), Err(ResumeError::NotFound));
    assert_eq!(all.kept().bytes, 0);
}

#[tokio::test]
async fn a_writer_waits_for_a_slow_client_and_a_large_event_passes() {
    let all = streams(STREAM_FRACTION * (STREAM_OVERHEAD + 1024));
    let (mut writer, mut reader) = all.begin(None, KIND).unwrap();
    let writing = tokio::spawn(async move {
        writer.write(events(50, 400)).await.unwrap();
        writer.write(events(1, 9000)).await.unwrap();
        writer
    });
    let mut seen = Vec::new();
    while seen.len() < 51 {
        seen.extend(numbers(reader.next().await));
        assert!(all.kept().bytes < STREAM_OVERHEAD + 11_000);
    }
    assert_eq!(seen, (1..=51).collect::<Vec<u64>>());
    drop(writing.await.unwrap());
}

#[tokio::test]
async fn streams_that_have_ended_make_room_for_others() {
    let all = streams(STREAM_FRACTION * 8192);
    let mut ended = Vec::new();
    for _ in 0..20 {
        let (mut writer, reader) = all.begin(None, KIND).unwrap();
        let id = writer.id().to_owned();
        drop(reader);
        writer.write(events(5, 512)).await.unwrap();
        ended.push((id, tokio::spawn(writer.end(events(1, 512)))));
        tokio::task::yield_now().await;
    }
    assert!(all.kept().bytes <= all.limit);
    let is_kept = |id: &str| all.resume(&at(id, 0), None, None).is_ok();
    assert!(!is_kept(&ended[0].0) && is_kept(&ended[19].0));
    ended.iter().for_each(|(_, ending)| ending.abort());
}

#[tokio::test]
async fn a_client_that_does_not_return_abandons_its_stream() {
    let window = Duration::from_millis(30);
    let all = ResumableStreams::new(window, units::Bytes::mib(1), Arc::new(Metrics::new()));
    let (mut writer, reader) = all.begin(None, KIND).unwrap();
    assert!(tokio::time::timeout(window * 3, writer.abandoned()).await.is_err(), "it is connected");
    drop(reader);
    assert_eq!(writer.abandoned().await, Abandoned::ClientGone);
    assert_eq!(all.metrics.streams_abandoned.get(), 1);
    let off = ResumableStreams::new(Duration::ZERO, units::Bytes::mib(1), Arc::new(Metrics::new()));
    assert!(off.begin(None, KIND).is_none());
}
