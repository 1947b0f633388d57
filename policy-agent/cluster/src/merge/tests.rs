use fairlead_index::kubernetes;
use fairlead_index::{Index, Parsed};
use serde_json::json;

use super::*;

fn seen(kind: Kind, name: &str, revision: u64) -> Seen {
    let object = json!({
        "apiVersion": kind.api_version(), "kind": kind.name(),
        "metadata": {"name": name, "namespace": "ns", "labels": {"revision": revision.to_string()}},
    });
    let parsed = kubernetes::read(&object).map(|(id, outcome)| Parsed { id, origin: None, outcome });
    Seen { parsed, revision }
}

fn pod(name: &str, revision: u64) -> Seen {
    seen(Kind::Pod, name, revision)
}

/// Changes in short: `name@revision` applied, `-name` deleted, `=names` of an end of a list.
fn said(merge: &mut Merge) -> Vec<String> {
    let short = |change: &Change| match change {
        Change::Apply(parsed) => {
            let fairlead_index::Outcome::Good(fairlead_index::Object::Pod(pod)) = &parsed.outcome else {
                return parsed.id.key.name.clone();
            };
            format!("{}@{}", pod.key.name, pod.labels["revision"])
        }
        Change::Delete(id) => format!("-{}", id.key.name),
        Change::Only(_, there) => {
            let mut names: Vec<_> = there.iter().map(|key| key.name.as_str()).collect();
            names.sort_unstable();
            format!("={}", names.join(","))
        }
    };
    merge.take().iter().map(short).collect()
}

#[test]
fn a_list_is_applied_and_what_it_leaves_out_goes() {
    let mut merge = Merge::new(Kind::Pod);
    assert!(!merge.is_synced());
    merge.list_begins();
    merge.listed(pod("a", 3));
    merge.listed(pod("b", 5));
    assert!(!merge.is_synced());
    merge.list_ends();
    assert!(merge.is_synced());
    assert_eq!(said(&mut merge), ["a@3", "b@5", "=a,b"]);
    merge.applied(pod("a", 6));
    merge.deleted(pod("b", 7));
    assert_eq!(said(&mut merge), ["a@6", "-b"]);
    // A watch that is interrupted begins again with a list; while it lasts, nothing is taken away.
    merge.list_begins();
    merge.listed(pod("a", 6));
    assert_eq!(said(&mut merge), ["a@6"]);
    merge.listed(pod("c", 9));
    merge.list_ends();
    assert_eq!(said(&mut merge), ["c@9", "=a,c"]);
    assert_eq!(said(&mut merge), Vec::<String>::new());
}

#[test]
fn policies_of_a_list_come_all_at_once() {
    let mut merge = Merge::new(Kind::NetworkPolicy);
    merge.list_begins();
    merge.listed(seen(Kind::NetworkPolicy, "a", 1));
    assert_eq!(said(&mut merge), Vec::<String>::new());
    // Interrupted: the next list tells the whole.
    merge.list_begins();
    merge.listed(seen(Kind::NetworkPolicy, "b", 2));
    assert_eq!(said(&mut merge), Vec::<String>::new());
    merge.list_ends();
    assert_eq!(said(&mut merge), ["a", "b", "=b"]);
}

#[test]
fn a_list_that_begins_again_keeps_nothing_of_the_one_before() {
    let mut index = Index::default();
    let mut merge = Merge::new(Kind::Pod);
    merge.list_begins();
    merge.listed(pod("gone-meanwhile", 1));
    merge.list_begins();
    merge.listed(pod("a", 2));
    merge.list_ends();
    let batch = fairlead_index::Batch { changes: merge.take(), problems: Vec::new() };
    index.update(batch);
    assert_eq!(index.pod_uid(&ObjectKey::new("ns", "a")).as_deref(), Some(""));
    assert_eq!(index.pod_uid(&ObjectKey::new("ns", "gone-meanwhile")), None);
}

#[test]
fn what_was_fetched_is_not_undone_by_what_is_older() {
    let mut merge = Merge::new(Kind::Pod);
    merge.list_begins();
    merge.list_ends();
    merge.take();
    merge.fetched(pod("a", 10));
    assert_eq!(said(&mut merge), ["a@10"]);
    // The watch comes after: created, changed, and so on.
    merge.applied(pod("a", 8));
    merge.deleted(pod("a", 9));
    assert_eq!(said(&mut merge), Vec::<String>::new());
    merge.applied(pod("a", 10));
    merge.applied(pod("a", 12));
    assert_eq!(said(&mut merge), ["a@10", "a@12"]);
    merge.deleted(pod("a", 13));
    assert_eq!(said(&mut merge), ["-a"]);
}

#[test]
fn an_answer_that_the_watch_has_overtaken_is_no_news() {
    let mut merge = Merge::new(Kind::Pod);
    merge.list_begins();
    merge.listed(pod("a", 5));
    merge.list_ends();
    merge.deleted(pod("a", 8));
    merge.take();
    // Asked before it was deleted, answered after.
    merge.fetched(pod("a", 5));
    assert_eq!(said(&mut merge), Vec::<String>::new());
}

#[test]
fn a_list_that_is_older_than_what_was_fetched_does_not_take_it_away() {
    let mut merge = Merge::new(Kind::Pod);
    merge.list_begins();
    merge.listed(pod("a", 5));
    merge.fetched(pod("b", 20));
    merge.list_ends();
    assert_eq!(said(&mut merge), ["a@5", "b@20", "=a,b"]);
    // The next list began after it was fetched: if it lacks it, it is gone.
    merge.list_begins();
    merge.listed(pod("a", 5));
    merge.list_ends();
    assert_eq!(said(&mut merge), ["a@5", "=a"]);
    merge.applied(pod("b", 18));
    assert_eq!(said(&mut merge), ["b@18"], "nothing newer is known of it any more");
}

#[test]
fn what_nobody_can_name_is_a_problem_until_it_is_gone() {
    let mut merge = Merge::new(Kind::Pod);
    merge.list_begins();
    merge.list_ends();
    merge.applied(pod("Not_A_Name", 3));
    assert_eq!(merge.problems().count(), 1);
    merge.deleted(pod("Not_A_Name", 4));
    assert_eq!(merge.problems().count(), 0);
}
