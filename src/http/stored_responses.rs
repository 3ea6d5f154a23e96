//! Responses that `/v1/responses` stores, so that a request can continue one by its id.
//!
//! They are in memory only, for a limited time, and within `server.stored_responses_bytes`: the oldest make room for new ones. Each
//! belongs to the API key that made it.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{text::Message, units::Bytes};

/// What a stored response needs besides its texts.
const OVERHEAD: usize = 1024;

/// The stored responses of all clients. Cloning shares them.
#[derive(Clone, Debug)]
pub(crate) struct StoredResponses {
    limit: Bytes,
    lifetime: Duration,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    /// By the order in which they were stored.
    responses: BTreeMap<u64, Stored>,
    numbers: HashMap<String, u64>,
    next: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Stored {
    id: String,
    /// The name of the API key that made it.
    owner: Option<String>,
    at: Instant,
    bytes: usize,
    /// The answer as JSON.
    document: Arc<str>,
    /// The conversation up to the answer, without instructions.
    messages: Vec<Message>,
}

/// The stored responses that a client may see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredForClient<'a> {
    all: &'a StoredResponses,
    owner: Option<&'a str>,
}

/// A response to store once it is complete.
#[derive(Clone, Debug)]
pub(crate) struct ToStore {
    all: StoredResponses,
    owner: Option<String>,
    messages: Vec<Message>,
    pub(crate) previous: Option<String>,
}

impl StoredResponses {
    /// Stores within `limit`, each response for `lifetime`.
    pub(crate) fn new(limit: Bytes, lifetime: Duration) -> Self {
        Self { limit, lifetime, kept: Arc::default() }
    }

    /// What the client with this API key may see; `None` if nothing is stored here.
    pub(crate) fn of<'a>(&'a self, owner: Option<&'a str>) -> Option<StoredForClient<'a>> {
        (self.limit > Bytes(0)).then_some(StoredForClient { all: self, owner })
    }

    /// What is stored and has not expired.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // A panic while it was locked cannot leave it half changed in a way that matters: texts are only added and removed.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.oldest().is_some_and(|oldest| oldest.at.elapsed() >= self.lifetime) {
            kept.remove_oldest();
        }
        kept
    }

    fn add(&self, stored: Stored) {
        let limit = usize::try_from(self.limit.0).unwrap_or(usize::MAX);
        if stored.bytes > limit {
            return;
        }
        let mut kept = self.kept();
        kept.bytes += stored.bytes;
        while kept.bytes > limit && kept.remove_oldest() {}
        let number = kept.next;
        kept.next += 1;
        kept.numbers.insert(stored.id.clone(), number);
        kept.responses.insert(number, stored);
    }
}

impl Kept {
    fn oldest(&self) -> Option<&Stored> {
        self.responses.first_key_value().map(|(_, stored)| stored)
    }

    /// Whether there was one.
    fn remove_oldest(&mut self) -> bool {
        let removed = self.responses.pop_first().map(|(_, stored)| stored);
        removed.as_ref().inspect(|stored| self.forget(stored)).is_some()
    }

    fn forget(&mut self, removed: &Stored) {
        self.bytes -= removed.bytes;
        self.numbers.remove(&removed.id);
    }

    fn find(&self, id: &str, owner: Option<&str>) -> Option<&Stored> {
        let stored = self.responses.get(self.numbers.get(id)?)?;
        (stored.owner.as_deref() == owner).then_some(stored)
    }
}

impl StoredForClient<'_> {
    /// The messages of the response with this id, and its answer.
    pub(crate) fn conversation(self, id: &str) -> Option<Vec<Message>> {
        self.all.kept().find(id, self.owner).map(|stored| stored.messages.clone())
    }

    /// The response with this id, as JSON.
    pub(crate) fn document(self, id: &str) -> Option<Arc<str>> {
        self.all.kept().find(id, self.owner).map(|stored| Arc::clone(&stored.document))
    }

    /// Removes the response with this id; false if there is none.
    pub(crate) fn remove(self, id: &str) -> bool {
        let mut kept = self.all.kept();
        if kept.find(id, self.owner).is_none() {
            return false;
        }
        let number = kept.numbers.get(id).copied();
        let removed = number.and_then(|number| kept.responses.remove(&number));
        removed.inspect(|stored| kept.forget(stored)).is_some()
    }

    /// A response to these messages, which is stored once it is complete; `previous` is the one that it continues.
    pub(crate) fn to_store(self, messages: Vec<Message>, previous: Option<String>) -> ToStore {
        ToStore { all: self.all.clone(), owner: self.owner.map(str::to_owned), messages, previous }
    }
}

impl ToStore {
    /// Stores the response: its JSON, and its answer as a message.
    pub(crate) fn store(&mut self, id: &str, document: &str, answer: Message) {
        let mut messages = mem::take(&mut self.messages);
        messages.push(answer);
        let bytes = OVERHEAD + document.len() + messages.iter().map(bytes_of).sum::<usize>();
        self.all.add(Stored {
            id: id.to_owned(),
            owner: self.owner.clone(),
            at: Instant::now(),
            bytes,
            document: document.into(),
            messages,
        });
    }
}

/// An estimate of the memory of a message.
fn bytes_of(message: &Message) -> usize {
    const OVERHEAD: usize = 256;
    let json = serde_json::to_string(message).map_or(0, |json| json.len());
    OVERHEAD + json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(all: &StoredResponses, owner: Option<&str>, id: &str, text: &str) {
        let mut response = all.of(owner).unwrap().to_store(vec![Message::new("user", "a")], None);
        response.store(id, text, Message::new("assistant", "b"));
    }

    #[test]
    fn the_oldest_make_room_and_a_response_above_the_limit_is_not_stored() {
        let all = StoredResponses::new(Bytes(3 * 4096), Duration::from_secs(60));
        let text = "x".repeat(2048);
        for id in ["1", "2", "3", "4", "5"] {
            store(&all, None, id, &text);
        }
        store(&all, None, "large", &"x".repeat(20_000));
        let client = all.of(None).unwrap();
        let found: Vec<_> = ["1", "2", "3", "4", "5", "large"].map(|id| client.document(id).is_some()).into();
        assert_eq!(found, [false, false, true, true, true, false]);
        assert!(all.kept().bytes <= 3 * 4096);
        assert!(client.remove("4") && !client.remove("4") && client.document("4").is_none());
        client.remove("3");
        client.remove("5");
        let kept = all.kept();
        assert_eq!((kept.bytes, kept.numbers.len()), (0, 0));
    }

    #[test]
    fn a_response_belongs_to_its_key_and_expires() {
        let all = StoredResponses::new(Bytes::mib(1), Duration::from_millis(20));
        store(&all, Some("a"), "1", "{}");
        assert!(
            all.of(Some("b")).unwrap().document("1").is_none()
                && all.of(None).unwrap().document("1").is_none()
        );
        assert!(!all.of(Some("b")).unwrap().remove("1"));
        assert_eq!(all.of(Some("a")).unwrap().conversation("1").unwrap().len(), 2);
        std::thread::sleep(Duration::from_millis(30));
        assert!(all.of(Some("a")).unwrap().document("1").is_none());
        assert!(StoredResponses::new(Bytes(0), Duration::from_secs(1)).of(None).is_none());
    }
}
