//! Watch events of one kind → changes.
//!
//! A watch tells of each change once and in order, until it breaks; then a list says what there is. So
//! that a list is no flap, what it names is applied and what it leaves out is deleted, and nothing else
//! happens. A pod that was fetched directly may be newer than what the watch says next; the revision
//! tells.

use std::collections::{BTreeMap, HashMap, HashSet};

use fairlead_index::{Change, Kind, Problem};
use fairlead_policy::model::ObjectKey;

use crate::object::Seen;

/// What is known of one kind.
#[derive(Debug)]
pub struct Merge {
    kind: Kind,
    /// Those that a list has named so far, while there is one.
    listed: Option<HashSet<ObjectKey>>,
    /// The first list has ended.
    synced: bool,
    /// Greatest revision that the watch has told of: it has told of all that was so by then.
    latest: u64,
    /// Not told yet.
    changes: Vec<Change>,
    fetched: HashMap<ObjectKey, Fetched>,
    unreadable: BTreeMap<String, Problem>,
}

/// An object that was fetched and that the watch has not caught up with.
#[derive(Clone, Copy, Debug)]
struct Fetched {
    revision: u64,
    /// It was fetched after the list that is under way had begun, so that list may lack it.
    during_list: bool,
}

impl Merge {
    /// Nothing is known.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            listed: None,
            synced: false,
            latest: 0,
            changes: Vec::new(),
            fetched: HashMap::new(),
            unreadable: BTreeMap::new(),
        }
    }

    /// A list begins.
    pub fn list_begins(&mut self) {
        self.listed = Some(HashSet::new());
        self.unreadable.clear();
        for fetched in self.fetched.values_mut() {
            fetched.during_list = false;
        }
    }

    /// A list names an object.
    pub fn listed(&mut self, seen: Seen) {
        if let (Some(listed), Ok(parsed)) = (&mut self.listed, &seen.parsed) {
            listed.insert(parsed.id.key.clone());
        }
        self.applied(seen);
    }

    /// A list has ended: what it did not name is gone.
    pub fn list_ends(&mut self) {
        let Some(mut listed) = self.listed.take() else { return };
        self.fetched.retain(|key, fetched| {
            if fetched.during_list {
                listed.insert(key.clone());
            }
            // An older list says nothing of it; the watch that follows will.
            fetched.during_list || listed.contains(key)
        });
        self.changes.push(Change::Only(self.kind, listed));
        self.synced = true;
    }

    /// An object is there, or has changed.
    pub fn applied(&mut self, seen: Seen) {
        self.latest = self.latest.max(seen.revision);
        match seen.parsed {
            Ok(parsed) if self.is_news(&parsed.id.key, seen.revision) => {
                self.changes.push(Change::Apply(parsed));
            }
            Ok(_) => {}
            Err(e) => {
                let object = e.object.unwrap_or_else(|| self.kind.name().to_owned());
                let problem = Problem {
                    object: Some(object.clone()),
                    field: e.field,
                    message: e.message,
                    ..Problem::default()
                };
                self.unreadable.insert(object, problem);
            }
        }
    }

    /// An object is gone.
    pub fn deleted(&mut self, seen: Seen) {
        self.latest = self.latest.max(seen.revision);
        match seen.parsed {
            Ok(parsed) if self.is_news(&parsed.id.key, seen.revision) => {
                self.changes.push(Change::Delete(parsed.id));
            }
            Ok(_) => {}
            Err(e) => drop(self.unreadable.remove(&e.object.unwrap_or_default())),
        }
    }

    /// An object was fetched by itself.
    pub fn fetched(&mut self, seen: Seen) {
        let Ok(parsed) = seen.parsed else { return };
        let during_list = self.listed.is_some();
        // An answer that the watch has overtaken: the object may have changed since, or be gone.
        let overtaken = !during_list && seen.revision <= self.latest;
        if overtaken || !self.is_news(&parsed.id.key, seen.revision) {
            return;
        }
        self.fetched.insert(parsed.id.key.clone(), Fetched { revision: seen.revision, during_list });
        self.changes.push(Change::Apply(parsed));
    }

    /// Whether a state of an object is not older than what was fetched of it.
    fn is_news(&mut self, key: &ObjectKey, revision: u64) -> bool {
        match self.fetched.get(key) {
            Some(fetched) if revision < fetched.revision => false,
            Some(_) => {
                self.fetched.remove(key);
                true
            }
            None => true,
        }
    }

    /// Whether all that was there at the start has been said.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// What is to be told by now. Of a list under way that is nothing, because nobody should meet half of
    /// the policies; but of kinds of which there are too many to be kept until its end.
    pub fn take(&mut self) -> Vec<Change> {
        let many = matches!(self.kind, Kind::Pod | Kind::EndpointSlice | Kind::Service);
        if self.listed.is_some() && !many {
            return Vec::new();
        }
        std::mem::take(&mut self.changes)
    }

    /// Objects of which nobody can say what they are.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.unreadable.values()
    }
}

#[cfg(test)]
mod tests;
