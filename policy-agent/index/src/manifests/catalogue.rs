//! Which file defines what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_api::status::Problem;
use fairlead_policy::claims::Claims;

use super::document::{Format, documents};
use crate::kubernetes;
use crate::object::{Batch, Change, ObjectId, Origin, Parsed};

/// What one file defines.
#[derive(Debug, Default)]
pub(super) struct File {
    /// In the order of the file; of two with one name the first.
    objects: BTreeMap<ObjectId, Arc<Parsed>>,
    /// What is wrong with the file itself.
    problems: Vec<Problem>,
    /// It may define more: nobody can say what the part means that cannot be parsed.
    broken: bool,
}

impl File {
    /// Reads the text of a file.
    pub(super) fn read(name: &str, text: &str) -> Self {
        let name: Arc<str> = name.into();
        let format = if name.ends_with(".json") { Format::Json } else { Format::Yaml };
        let mut file = Self::default();
        let problem = |line, object, field, message| Problem {
            file: Some(name.to_string()),
            line: Some(line),
            object,
            field,
            message,
        };
        for document in documents(text, format) {
            let line = document.line;
            let value = match document.value {
                Ok(value) => value,
                Err(message) => {
                    file.broken = true;
                    let message = format!("cannot be parsed: {message}");
                    file.problems.push(problem(line, None, None, message));
                    continue;
                }
            };
            for value in kubernetes::unpack(value) {
                match kubernetes::read(&value) {
                    Ok((id, _)) if file.objects.contains_key(&id) => file.problems.push(problem(
                        line,
                        Some(id.to_string()),
                        None,
                        "is defined twice in this file; the first definition holds".to_owned(),
                    )),
                    Ok((id, outcome)) => {
                        let origin = Some(Origin { file: name.clone(), line });
                        file.objects.insert(id.clone(), Arc::new(Parsed { id, origin, outcome }));
                    }
                    Err(e) => {
                        // Which object this is cannot be said, so it could be any of the file's.
                        file.broken |= e.object.is_none() || e.field.as_deref() != Some("kind");
                        file.problems.push(problem(line, e.object, e.field, e.message));
                    }
                }
            }
        }
        file
    }
}

/// The contents of a directory of manifests, without I/O.
///
/// An object that several files define is as the first of them by name says.
#[derive(Debug, Default)]
pub struct Catalogue {
    files: BTreeMap<Arc<str>, File>,
    /// Which files define an object, so that a change is not looked for in all of them.
    defined: Claims<ObjectId, Arc<str>>,
    /// What was said last of each object.
    told: BTreeMap<ObjectId, Arc<Parsed>>,
    /// Objects whose definitions may have changed since.
    touched: BTreeSet<ObjectId>,
    /// What is wrong with the directory itself.
    problem: Option<Problem>,
    told_problems: Vec<Problem>,
}

impl Catalogue {
    /// A file is there, or has changed. Documents that cannot be parsed leave in force whatever the
    /// file defined before and now lacks: nobody can say which of it they meant to be.
    pub fn set_file(&mut self, name: &str, text: &str) {
        self.put_file(name, File::read(name, text));
    }

    /// As [`Self::set_file`], of a file that was read.
    pub(super) fn put_file(&mut self, name: &str, mut file: File) {
        let name: Arc<str> = name.into();
        let before = self.files.remove(&name).unwrap_or_default();
        self.forget(&name, &before);
        if file.broken {
            for (id, parsed) in before.objects {
                file.objects.entry(id).or_insert(parsed);
            }
        }
        for id in file.objects.keys() {
            self.touched.insert(id.clone());
            self.defined.claim(id.clone(), name.clone());
        }
        self.files.insert(name, file);
    }

    /// A file no longer defines what it did.
    fn forget(&mut self, name: &Arc<str>, before: &File) {
        for id in before.objects.keys() {
            self.touched.insert(id.clone());
            self.defined.release(id, name);
        }
    }

    /// A file cannot be read: what it defined stays in force.
    pub fn set_unreadable(&mut self, name: &str, message: &str) {
        let file = self.files.entry(name.into()).or_default();
        file.problems = vec![Problem {
            file: Some(name.to_owned()),
            message: format!("{message}; what it defined before stays in force"),
            ..Problem::default()
        }];
    }

    /// A file is gone.
    pub fn remove_file(&mut self, name: &str) {
        if let Some((name, file)) = self.files.remove_entry(name) {
            self.forget(&name, &file);
        }
    }

    /// The directory as a whole can be read, or cannot.
    pub fn set_problem(&mut self, problem: Option<String>) {
        self.problem = problem.map(|message| Problem { message, ..Problem::default() });
    }

    /// Names of the files, sorted.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(|name| &**name)
    }

    /// What has changed since the last call; `None` where nothing has.
    pub fn take(&mut self) -> Option<Batch> {
        let mut changes = Vec::new();
        for id in std::mem::take(&mut self.touched) {
            let first = self.defined.first(&id).and_then(|name| self.files.get(name));
            let holds = first.and_then(|file| file.objects.get(&id));
            match (holds, self.told.get(&id)) {
                (Some(parsed), told) if told != Some(parsed) => {
                    changes.push(Change::Apply(Parsed::clone(parsed)));
                    self.told.insert(id, parsed.clone());
                }
                (None, Some(_)) => {
                    self.told.remove(&id);
                    changes.push(Change::Delete(id));
                }
                _ => {}
            }
        }
        let problems = self.problems();
        if changes.is_empty() && problems == self.told_problems {
            return None;
        }
        self.told_problems.clone_from(&problems);
        Some(Batch { changes, problems })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut all: Vec<Problem> = self.problem.iter().cloned().collect();
        all.extend(self.files.values().flat_map(|file| file.problems.iter().cloned()));
        for (id, others) in self.defined.disputed() {
            let Some(winner) = self.defined.first(id) else { continue };
            for name in others {
                let parsed = self.files.get(name).and_then(|file| file.objects.get(id));
                all.push(Problem {
                    file: Some(name.to_string()),
                    line: parsed.and_then(|parsed| parsed.origin.as_ref()).map(|o| o.line),
                    object: Some(id.to_string()),
                    field: None,
                    message: format!("is defined in {winner} too, and that definition holds"),
                });
            }
        }
        all
    }
}
