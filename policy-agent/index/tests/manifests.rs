//! A directory of manifests: what files mean, and what their changes do.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use fairlead_index::manifests::watch::watch;
use fairlead_index::manifests::{Catalogue, Directory};
use fairlead_index::{Batch, Change, Event, Outcome};
use tokio::sync::mpsc;

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

fn labelled(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{v: \"{value}\"}}}}\n")
}

/// Changes as `+id` and `-id`, with `!` after what is bad.
fn changes(batch: Option<Batch>) -> Vec<String> {
    batch
        .map(|batch| batch.changes)
        .unwrap_or_default()
        .iter()
        .map(|change| match change {
            Change::Apply(p) => {
                let mark = if matches!(p.outcome, Outcome::Good(_)) { "" } else { "!" };
                let file = p.origin.as_ref().map(|o| format!(" {}:{}", o.file, o.line)).unwrap_or_default();
                format!("+{}{mark}{file}", p.id)
            }
            Change::Delete(id) => format!("-{id}"),
            Change::Only(..) => panic!("what is left out of manifests is deleted by name"),
        })
        .collect()
}

fn problems(batch: Option<Batch>) -> Vec<String> {
    batch.unwrap().problems.iter().map(ToString::to_string).collect()
}

#[test]
fn files_come_change_and_go() {
    let mut catalogue = Catalogue::default();
    catalogue.set_file("a.yaml", &format!("{}---\n{}", namespace("x"), namespace("y")));
    assert_eq!(changes(catalogue.take()), ["+Namespace x a.yaml:1", "+Namespace y a.yaml:5"]);
    assert_eq!(catalogue.take(), None);
    catalogue.set_file("a.yaml", &format!("{}---\n{}", namespace("x"), labelled("y", "1")));
    assert_eq!(changes(catalogue.take()), ["+Namespace y a.yaml:5"]);
    catalogue.set_file("a.yaml", "");
    assert_eq!(changes(catalogue.take()), ["-Namespace x", "-Namespace y"]);
    catalogue.set_file("a.yaml", &namespace("x"));
    catalogue.set_file("b.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "z"}}"#);
    assert_eq!(changes(catalogue.take()), ["+Namespace x a.yaml:1", "+Namespace z b.json:1"]);
    catalogue.remove_file("a.yaml");
    assert_eq!(changes(catalogue.take()), ["-Namespace x"]);
}

#[test]
fn of_two_definitions_the_first_by_file_name_holds() {
    let mut catalogue = Catalogue::default();
    catalogue.set_file("b.yaml", &labelled("x", "b"));
    assert_eq!(changes(catalogue.take()), ["+Namespace x b.yaml:1"]);
    catalogue.set_file("a.yaml", &labelled("x", "a"));
    catalogue.set_file("c.yaml", &labelled("x", "c"));
    let batch = catalogue.take();
    assert_eq!(changes(batch.clone()), ["+Namespace x a.yaml:1"]);
    assert_eq!(
        problems(batch),
        [
            "b.yaml:1: Namespace x: is defined in a.yaml too, and that definition holds",
            "c.yaml:1: Namespace x: is defined in a.yaml too, and that definition holds"
        ]
    );
    catalogue.remove_file("a.yaml");
    assert_eq!(changes(catalogue.take()), ["+Namespace x b.yaml:1"]);
    // Twice in one file.
    catalogue.set_file("b.yaml", &format!("{}---\n{}", labelled("x", "1"), labelled("x", "2")));
    let batch = catalogue.take();
    assert_eq!(changes(batch.clone()), ["+Namespace x b.yaml:1"]);
    assert!(problems(batch)[0].starts_with("b.yaml:5: Namespace x: is defined twice"));
}

#[test]
fn what_cannot_be_parsed_takes_nothing_away() {
    let mut catalogue = Catalogue::default();
    catalogue.set_file("a.yaml", &format!("{}---\n{}", namespace("x"), namespace("y")));
    catalogue.take();
    // The whole file, a part of it beside one that changes, an object without a name.
    catalogue.set_file("a.yaml", "kind: [");
    let batch = catalogue.take();
    assert_eq!(changes(batch.clone()), Vec::<String>::new());
    assert!(problems(batch)[0].starts_with("a.yaml:1: cannot be parsed: "));
    catalogue.set_file("a.yaml", &format!("{}---\nkind: [\n", labelled("x", "1")));
    assert_eq!(changes(catalogue.take()), ["+Namespace x a.yaml:1"]);
    catalogue.set_file("a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {nam: y}\n");
    let batch = catalogue.take();
    assert_eq!(changes(batch.clone()), Vec::<String>::new());
    assert_eq!(problems(batch), ["a.yaml:1: Namespace: metadata.name: is missing"]);
    // An unknown kind is ignored, and said.
    catalogue
        .set_file("a.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: n}\n");
    let batch = catalogue.take();
    assert_eq!(changes(batch.clone()), ["-Namespace x", "-Namespace y"]);
    assert_eq!(
        problems(batch),
        ["a.yaml:1: Deployment n/d: kind: Deployment of apps/v1 is unknown here and ignored"]
    );
    catalogue.set_file("a.yaml", "");
    assert_eq!(catalogue.take(), Some(Batch::default()));
}

#[test]
fn which_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a.yaml"), namespace("a")).unwrap();
    fs::write(at("b.yml"), namespace("b")).unwrap();
    fs::write(at("c.json"), r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "c"}}"#)
        .unwrap();
    fs::write(at("d.txt"), namespace("d")).unwrap();
    fs::write(at(".e.yaml"), namespace("e")).unwrap();
    fs::write(outside.path().join("f"), namespace("f")).unwrap();
    symlink(outside.path().join("f"), at("f.yaml")).unwrap();
    symlink(at("nowhere"), at("g.yaml")).unwrap();
    fs::create_dir(at("h.yaml")).unwrap();
    fs::write(at("i.yaml"), [0xff, 0xfe]).unwrap();
    fs::write(at("j.yaml"), vec![b'#'; (4 << 20) + 1]).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(at("k.yaml")).status().unwrap();
    assert!(fifo.success());
    let mut directory = Directory::new(dir.path());
    let batch = directory.scan().unwrap();
    assert_eq!(
        changes(batch.clone()),
        ["+Namespace a a.yaml:1", "+Namespace b b.yml:1", "+Namespace c c.json:1", "+Namespace f f.yaml:1"]
    );
    let said: Vec<String> =
        problems(batch).iter().map(|p| p.split(';').next().unwrap_or_default().to_owned()).collect();
    assert_eq!(
        said,
        [
            "g.yaml: No such file or directory (os error 2)",
            "h.yaml: is not a regular file",
            "i.yaml: is not UTF-8 text (at byte 0)",
            "j.yaml: is longer than 4 MiB",
            "k.yaml: is not a regular file",
        ]
    );
    assert!(directory.outside().contains(&outside.path().canonicalize().unwrap()));
    // What can no longer be read stays in force.
    fs::write(at("a.yaml"), [0xff]).unwrap();
    assert_eq!(changes(directory.scan().unwrap()), Vec::<String>::new());
    fs::remove_file(at("a.yaml")).unwrap();
    assert_eq!(changes(directory.scan().unwrap()), ["-Namespace a"]);
}

#[test]
fn a_directory_that_is_gone_takes_nothing_away() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("m");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), namespace("a")).unwrap();
    let mut directory = Directory::new(&path);
    assert_eq!(changes(directory.scan().unwrap()).len(), 1);
    fs::rename(&path, parent.path().join("n")).unwrap();
    assert!(directory.scan().is_err());
    let batch = directory.take();
    assert_eq!(changes(batch.clone()), Vec::<String>::new());
    assert_eq!(problems(batch).len(), 1);
    fs::rename(parent.path().join("n"), &path).unwrap();
    assert_eq!(directory.scan().unwrap(), Some(Batch::default()));
}

/// A watched directory.
struct Watched {
    events: mpsc::UnboundedReceiver<Event>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Watched {
    async fn start(path: &Path) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let task = tokio::spawn(watch(Directory::new(path), move |event| sender.send(event).is_ok()));
        let mut watched = Self { events, task };
        while watched.next().await != Event::Synced {}
        watched
    }

    async fn next(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await.unwrap().unwrap()
    }

    async fn changes(&mut self) -> Vec<String> {
        loop {
            if let Event::Batch(batch) = self.next().await {
                let found = changes(Some(batch));
                if !found.is_empty() {
                    return found;
                }
            }
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn changes_that_come_together_are_one_batch() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut watched = Watched::start(dir.path()).await;
    fs::write(at(".a.new"), namespace("a")).unwrap();
    fs::write(at(".b.new"), namespace("b")).unwrap();
    fs::rename(at(".a.new"), at("a.yaml")).unwrap();
    fs::rename(at(".b.new"), at("b.yaml")).unwrap();
    assert_eq!(watched.changes().await, ["+Namespace a a.yaml:1", "+Namespace b b.yaml:1"]);
    fs::remove_file(at("a.yaml")).unwrap();
    fs::write(at("b.yaml"), labelled("b", "1")).unwrap();
    assert_eq!(watched.changes().await, ["-Namespace a", "+Namespace b b.yaml:1"]);
    fs::write(at("b.yaml"), "").unwrap();
    assert_eq!(watched.changes().await, ["-Namespace b"]);
}

#[tokio::test]
async fn a_file_that_is_being_written_is_awaited() {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, format!("{}---\n{}", namespace("a"), namespace("b"))).unwrap();
    let mut watched = Watched::start(dir.path()).await;
    // Rewritten in place and slowly: at no time is anything gone.
    let mut file = fs::File::create(&path).unwrap();
    for text in [namespace("a"), "---\n".to_owned(), namespace("b"), "---\n".to_owned(), namespace("c")] {
        file.write_all(text.as_bytes()).unwrap();
        file.flush().unwrap();
        // Longer than the time after which changes count as come to rest.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    drop(file);
    assert_eq!(watched.changes().await, ["+Namespace c a.yaml:9"]);
}

#[tokio::test]
async fn a_config_map_is_swapped_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (version, value) in [("..1", "1"), ("..2", "2")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("a.yaml"), labelled("a", value)).unwrap();
        fs::write(at(version).join("b.yaml"), labelled("b", value)).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    symlink("..data/b.yaml", at("b.yaml")).unwrap();
    let mut watched = Watched::start(dir.path()).await;
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    assert_eq!(watched.changes().await, ["+Namespace a a.yaml:1", "+Namespace b b.yaml:1"]);
}

#[tokio::test]
async fn files_behind_symlinks_are_watched() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("x"), namespace("x")).unwrap();
    symlink(outside.path().join("x"), dir.path().join("x.yaml")).unwrap();
    let mut watched = Watched::start(dir.path()).await;
    fs::write(outside.path().join("x"), labelled("x", "1")).unwrap();
    assert_eq!(watched.changes().await, ["+Namespace x x.yaml:1"]);
}

#[tokio::test]
async fn a_directory_that_comes_later_is_found() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("m");
    let (sender, mut events) = mpsc::unbounded_channel();
    let task = tokio::spawn(watch(Directory::new(&path), move |event| sender.send(event).is_ok()));
    // The problem is said first, and nothing is synced: an absent directory is not an empty one.
    let first = events.recv().await.unwrap();
    assert!(matches!(&first, Event::Batch(batch) if batch.problems.len() == 1), "{first:?}");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), namespace("a")).unwrap();
    let mut found = Vec::new();
    while found.last() != Some(&"synced".to_owned()) {
        let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap();
        match event {
            Event::Batch(batch) => found.extend(changes(Some(batch))),
            Event::Synced => found.push("synced".to_owned()),
        }
    }
    assert_eq!(found, ["+Namespace a a.yaml:1", "synced"]);
    task.abort();
}
