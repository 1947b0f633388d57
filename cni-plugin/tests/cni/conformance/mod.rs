//! The binding sentences of the CNI specification 1.1.0 and its conventions, one by one: each MUST,
//! SHOULD, REQUIRED or RECOMMENDED of its sections 1 to 5, in the order of its text.
//!
//! A row says where the sentence stands and what it asks. What binds a plugin has a check that calls the
//! executable and says what must come of it; what binds somebody else says whom, and why nothing of this
//! plugin can try it.

mod configuration;
mod conventions;
mod delegation;
mod execution;
mod operations;
mod results;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::node::{Node, Output, Pod};

const CIDRS: [&str; 2] = ["10.7.0.0/24", "fd07::/64"];

/// A sentence.
struct Row {
    /// Section, then where in it.
    place: &'static str,
    /// What it asks, in short.
    sentence: &'static str,
    binds: Binds,
}

/// Whom a sentence binds.
enum Binds {
    /// A plugin; tried by this.
    Plugin(fn(&Node, &Pod)),
    /// Somebody else.
    Other(&'static str),
}

const fn row(place: &'static str, sentence: &'static str, check: fn(&Node, &Pod)) -> Row {
    Row { place, sentence, binds: Binds::Plugin(check) }
}

const fn other(place: &'static str, sentence: &'static str, whom: &'static str) -> Row {
    Row { place, sentence, binds: Binds::Other(whom) }
}

/// Who calls plugins, and what it does is not seen by a plugin.
const RUNTIME: &str = "the runtime's";
/// Who writes network configurations. The agent writes one, which its own tests look at.
const AUTHOR: &str = "whoever writes the configuration";

/// A call of ADD with some variables other than usual; `None` leaves one out.
fn with(node: &Node, pod: &Pod, change: &[(&'static str, Option<&str>)], input: &str) -> Output {
    let mut variables = vec![
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", pod.id.as_str()),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", pod.path.as_str()),
    ];
    for (name, value) in change {
        variables.retain(|(n, _)| n != name);
        variables.extend(value.map(|value| (*name, value)));
    }
    node.call(&variables, input)
}

/// A verb that is about no container.
fn verb(node: &Node, verb: &str, more: &Value) -> Output {
    node.call(&[("CNI_COMMAND", verb)], &conf(node, more))
}

fn check(node: &Node, pod: &Pod, result: &Value) -> Output {
    node.verb("CHECK", pod, &node.conf_with(&json!({"prevResult": result})))
}

fn conf(node: &Node, change: &Value) -> String {
    node.conf_with(change).to_string()
}

fn at(version: &str) -> Value {
    json!({"cniVersion": version})
}

fn ip(args: &str) {
    assert!(std::process::Command::new("ip").args(args.split(' ')).status().unwrap().success(), "ip {args}");
}

/// That a call succeeded and said nothing.
fn silent(output: &Output) {
    assert!(output.ok && output.stdout.is_empty(), "{} {}", output.stdout, output.stderr);
}

#[test]
fn every_sentence_of_the_specification() {
    let Some(node) = Node::new(&CIDRS) else { return };
    let tables = [
        configuration::ROWS,
        operations::ROWS,
        operations::CHECK_AND_AFTER,
        execution::ROWS,
        delegation::ROWS,
        results::ROWS,
        conventions::ROWS,
    ];
    let (mut tried, mut others, mut seen) = (0, 0, BTreeSet::new());
    for (i, row) in tables.into_iter().flatten().enumerate() {
        assert!(seen.insert((row.place, row.sentence)), "twice: {}: {}", row.place, row.sentence);
        match row.binds {
            Binds::Plugin(check) => {
                eprintln!("{}: {}", row.place, row.sentence);
                let pod = node.pod(&format!("row{i}"));
                check(&node, &pod);
                node.del(&pod).success();
                node.assert_clean();
                tried += 1;
            }
            Binds::Other(whom) => {
                eprintln!("{}: {}: {whom}", row.place, row.sentence);
                others += 1;
            }
        }
    }
    println!("{others} more bind others than plugins");
    println!("cases: {tried}");
}
