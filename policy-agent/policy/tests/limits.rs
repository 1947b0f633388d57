//! Every table, too small: who keeps what, who is closed, and who does not notice.
#![expect(clippy::unwrap_used, reason = "the literals of the cases parse")]

use std::net::IpAddr;

use fairlead_common::maps::CLASS_FIRST;
use fairlead_policy::compiler::{Compiler, Instead, Limits, Resource};
use fairlead_policy::model::{
    LabelSelector, Labels, NamedPort, Namespace, NetworkPolicy, ObjectKey, Operator, Peer, Pod, PortRule,
    PortSpec, Protocol, Requirement, Rule,
};
use fairlead_policy::oracle::{Direction, Target};
use fairlead_policy::tables::{Slot, Tables};

const DB: Slot = 1;
const WEB: Slot = 2;
const PLAIN: Slot = 3;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("a", name)
}

fn pod(name: &str, tier: &str, address: &str, http: u16) -> Pod {
    Pod {
        key: key(name),
        uid: String::new(),
        labels: Labels::from([("name".to_owned(), name.to_owned()), ("tier".to_owned(), tier.to_owned())]),
        ips: vec![ip(address)],
        node: None,
        host_network: false,
        finished: false,
        ports: vec![NamedPort { name: "http".to_owned(), protocol: Protocol::Tcp, port: http }],
    }
}

fn has(key: &str, value: &str) -> LabelSelector {
    let operator = Operator::In(vec![value.to_owned()]);
    LabelSelector { requirements: vec![Requirement { key: key.to_owned(), operator }] }
}

fn peers(key: &str, value: &str) -> Peer {
    Peer::Pods { namespaces: None, pods: has(key, value) }
}

fn block(cidr: &str) -> Peer {
    Peer::IpBlock { cidr: cidr.parse().unwrap(), except: vec![] }
}

fn rule(peer: Peer, port: u16) -> Rule {
    let spec = PortSpec::Range { first: port, last: port };
    Rule { peers: vec![peer], ports: vec![PortRule { protocol: Protocol::Tcp, port: spec }] }
}

/// Isolates the pods of that name, or all, for ingress.
fn policy(name: &str, subject: Option<&str>, rules: Vec<Rule>) -> NetworkPolicy {
    let subjects = subject.map_or_else(LabelSelector::default, |name| has("name", name));
    NetworkPolicy { key: key(name), subjects, ingress: Some(rules), egress: None }
}

/// A compiler and the tables that it writes.
struct Node {
    compiler: Compiler,
    tables: Tables,
}

impl Node {
    /// Local `db`, `web` and `plain`; `one` and `two` elsewhere, 10.0.1.1 and 10.0.1.2.
    fn new(limits: Limits) -> Self {
        let mut compiler = Compiler::new(limits);
        compiler.set_namespace(&Namespace { name: "a".to_owned(), labels: Labels::new() });
        for (slot, name) in [(DB, "db"), (WEB, "web"), (PLAIN, "plain")] {
            let address = format!("10.0.0.{slot}");
            compiler.set_pod(&pod(name, "local", &address, 1));
            compiler.set_endpoint(slot, Some(key(name)), vec![ip(&address)]);
        }
        compiler.set_pod(&pod("one", "1", "10.0.1.1", 80));
        compiler.set_pod(&pod("two", "2", "10.0.1.2", 81));
        let mut node = Self { compiler, tables: Tables::default() };
        node.step();
        node
    }

    fn step(&mut self) {
        let delta = self.compiler.commit();
        self.tables.apply(&delta);
        self.compiler.settled(delta.serial);
    }

    fn set(&mut self, policy: &NetworkPolicy) {
        self.compiler.set_policy(policy);
        self.step();
    }

    fn remove(&mut self, name: &str) {
        self.compiler.remove_policy(&key(name));
        self.step();
    }

    fn reaches(&self, slot: Slot, from: &str, port: u16) -> bool {
        self.tables.allows(slot, Direction::Ingress, ip(from), Target::Port(Protocol::Tcp, port))
    }

    fn problems(&self) -> Vec<(Slot, Instead, Resource)> {
        self.compiler.problems().iter().map(|p| (p.slot, p.instead, p.resource)).collect()
    }
}

/// Rules that fit, and rules that do not because there is no room for one thing more.
fn too_small() -> Vec<(Resource, Limits, Vec<Rule>, Vec<Rule>)> {
    let wide = Limits::default();
    let one = || rule(peers("name", "one"), 80);
    let two = |port| rule(peers("name", "two"), port);
    let outside = |cidr| Rule { ports: vec![], ..rule(block(cidr), 0) };
    vec![
        (Resource::Sets, Limits { sets: 1, ..wide }, vec![one()], vec![one(), two(81)]),
        (Resource::Classes, Limits { classes: CLASS_FIRST + 1, ..wide }, vec![one()], vec![one(), two(81)]),
        (Resource::Rows, Limits { rows: 1, ..wide }, vec![one()], vec![one(), two(80)]),
        (Resource::Peers, Limits { peers: 1, ..wide }, vec![one()], vec![one(), two(80)]),
        (
            Resource::Cidrs,
            Limits { cidrs: 1, ..wide },
            vec![outside("10.0.1.1/32")],
            vec![outside("10.0.1.1/32"), outside("10.0.1.2/32")],
        ),
        (Resource::Signatures, Limits { signatures: 1, ..wide }, vec![one()], vec![one(), two(80)]),
    ]
}

#[test]
fn an_isolated_endpoint_keeps_its_rules_and_an_open_one_is_closed() {
    for (resource, limits, fits, more) in too_small() {
        let mut node = Node::new(limits);
        // Shared by both, so that a rule for one alone is a signature more.
        node.set(&policy("first", Some("db"), fits.clone()));
        node.set(&policy("first-web", Some("web"), fits));
        assert_eq!(node.problems(), [], "{resource:?}");
        assert!(node.reaches(DB, "10.0.1.1", 80) && !node.reaches(DB, "10.0.1.2", 80), "{resource:?}");

        node.set(&policy("first", Some("db"), more.clone()));
        assert_eq!(node.problems(), [(DB, Instead::Older, resource)], "{resource:?}");
        let [problem] = &*node.compiler.problems() else { panic!("one problem") };
        assert_eq!(problem.policies, [key("first")]);
        assert_eq!((&problem.pod, problem.direction), (&key("db"), Direction::Ingress));
        assert!(node.reaches(DB, "10.0.1.1", 80), "{resource:?}: what was in force stays");
        assert!(!node.reaches(DB, "10.0.1.2", 80) && !node.reaches(DB, "10.0.1.2", 81), "{resource:?}");
        assert!(node.reaches(WEB, "10.0.1.1", 80) && !node.reaches(WEB, "10.0.1.2", 80), "{resource:?}");
        assert!(node.reaches(PLAIN, "10.0.1.2", 81), "{resource:?}: who is not selected stays open");

        // What was open is denied, not left open; the others do not notice.
        node.set(&policy("second", Some("plain"), more));
        let expected = [(DB, Instead::Older, resource), (PLAIN, Instead::Closed, resource)];
        assert_eq!(node.problems(), expected, "{resource:?}");
        assert!(!node.reaches(PLAIN, "10.0.1.1", 80) && !node.reaches(PLAIN, "10.0.1.2", 81), "{resource:?}");
        assert!(node.reaches(DB, "10.0.1.1", 80) && node.reaches(WEB, "10.0.1.1", 80), "{resource:?}");

        node.remove("second");
        assert!(node.reaches(PLAIN, "10.0.1.2", 81), "{resource:?}: nothing selects it any more");
        node.remove("first");
        assert_eq!(node.problems(), [], "{resource:?}");
        assert!(node.reaches(DB, "10.0.1.2", 81), "{resource:?}");
        assert!(node.reaches(WEB, "10.0.1.1", 80) && !node.reaches(WEB, "10.0.1.2", 80), "{resource:?}");
    }
}

/// The older rules are those of the pod that has them: not of the next one in the slot.
#[test]
fn older_rules_are_not_for_another_pod_in_the_slot() {
    for (resource, limits, fits, more) in too_small() {
        if resource == Resource::Signatures {
            continue;
        }
        let mut node = Node::new(limits);
        node.set(&policy("first", Some("db"), fits));
        node.compiler.set_policy(&policy("next", Some("next"), more));
        node.compiler.set_pod(&pod("next", "local", "10.0.0.9", 1));
        node.compiler.set_endpoint(DB, Some(key("next")), vec![ip("10.0.0.9")]);
        node.step();
        assert_eq!(node.problems(), [(DB, Instead::Closed, resource)], "{resource:?}");
        assert!(!node.reaches(DB, "10.0.1.1", 80), "{resource:?}");
    }
}

/// Room that comes free is used, without anything else happening to the endpoint.
#[test]
fn rules_that_did_not_fit_come_into_force_when_they_do() {
    for (resource, limits, fits, _) in too_small() {
        let mut node = Node::new(limits);
        node.set(&policy("first", Some("db"), fits));
        let others = match resource {
            Resource::Cidrs => vec![Rule { ports: vec![], ..rule(block("10.0.1.2/32"), 0) }],
            _ => vec![rule(peers("name", "two"), 81)],
        };
        node.set(&policy("second", Some("web"), others));
        assert_eq!(node.problems(), [(WEB, Instead::Closed, resource)], "{resource:?}");
        node.remove("first");
        while node.compiler.is_dirty() {
            node.step();
        }
        assert_eq!(node.problems(), [], "{resource:?}");
        assert!(node.reaches(WEB, "10.0.1.2", 81) && !node.reaches(WEB, "10.0.1.1", 81), "{resource:?}");
    }
}

/// Rules at the limit can be replaced by others of the same size: both need not fit together.
#[test]
fn a_full_table_is_no_obstacle_to_rules_of_the_same_size() {
    for (resource, limits, fits, _) in too_small() {
        if resource == Resource::Classes {
            // The numbers of bits in a port set cannot be doubled.
            continue;
        }
        let mut node = Node::new(limits);
        node.set(&policy("first", Some("db"), fits));
        let others = match resource {
            Resource::Cidrs => vec![Rule { ports: vec![], ..rule(block("10.0.1.2/32"), 0) }],
            _ => vec![rule(peers("name", "two"), 81)],
        };
        node.set(&policy("first", Some("db"), others));
        assert_eq!(node.problems(), [], "{resource:?}");
        assert!(node.reaches(DB, "10.0.1.2", 81) && !node.reaches(DB, "10.0.1.1", 80), "{resource:?}");
    }
}

/// The world grows under rules in force: what was there keeps what it has, the newcomer is denied.
#[test]
fn growth_of_the_world_takes_nothing_from_what_is_there() {
    let wide = Limits::default();
    let tiers =
        || policy("tiers", Some("db"), vec![rule(peers("tier", "1"), 80), rule(peers("tier", "3"), 81)]);
    for (resource, limits) in [
        (Resource::Rows, Limits { rows: 1, ..wide }),
        (Resource::Sets, Limits { sets: 1, ..wide }),
        (Resource::Peers, Limits { peers: 1, ..wide }),
    ] {
        let mut node = Node::new(limits);
        node.set(&tiers());
        assert_eq!(node.problems(), [], "{resource:?}");
        node.compiler.set_pod(&pod("three", "3", "10.0.1.3", 1));
        node.step();
        assert_eq!(node.problems(), [(DB, Instead::Part, resource)], "{resource:?}");
        assert!(node.reaches(DB, "10.0.1.1", 80), "{resource:?}");
        assert!(!node.reaches(DB, "10.0.1.3", 81), "{resource:?}");
        // What is there is not made twice when the rest is tried again.
        let stats = node.compiler.stats();
        node.compiler.set_pod(&pod("one", "1", "10.0.1.1", 80));
        node.step();
        assert_eq!(node.compiler.stats(), stats, "{resource:?}");
        node.compiler.remove_pod(&key("one"));
        node.step();
        assert_eq!(node.problems(), [], "{resource:?}");
        assert!(node.reaches(DB, "10.0.1.3", 81) && !node.reaches(DB, "10.0.1.1", 80), "{resource:?}");
    }
}

/// Rules do not fit and the world grows in the same commit: the older ones are back as those that were there,
/// and what is new in the world is left out of them. As new ones they would have to give way in turn.
#[test]
fn older_rules_that_are_back_do_not_give_way() {
    let wide = Limits::default();
    let tiers = || vec![rule(peers("tier", "1"), 80), rule(peers("tier", "3"), 81)];
    for (resource, limits) in [
        (Resource::Rows, Limits { rows: 1, ..wide }),
        (Resource::Sets, Limits { sets: 1, ..wide }),
        (Resource::Peers, Limits { peers: 1, ..wide }),
    ] {
        let mut node = Node::new(limits);
        node.set(&policy("tiers", Some("db"), tiers()));
        assert_eq!(node.problems(), [], "{resource:?}");
        node.compiler.set_pod(&pod("three", "3", "10.0.1.3", 1));
        let more = [tiers(), vec![rule(peers("name", "two"), 82)]].concat();
        node.set(&policy("tiers", Some("db"), more));
        assert_eq!(node.problems(), [(DB, Instead::Older, resource)], "{resource:?}");
        let reached = [("10.0.1.1", 80), ("10.0.1.2", 82), ("10.0.1.3", 81)]
            .map(|(from, port)| node.reaches(DB, from, port));
        assert_eq!(reached, [true, false, false], "{resource:?}");
    }
}

/// It is the newcomer that is left out: not a peer that only changes in the same commit, and not one of the
/// other family.
#[test]
fn a_peer_too_many_is_left_out_itself() {
    let mut node = Node::new(Limits { peers: 1, ..Limits::default() });
    node.set(&policy("tier", Some("db"), vec![rule(peers("tier", "2"), 80)]));
    node.set(&policy("name", Some("web"), vec![rule(peers("name", "other"), 80)]));
    let renamed = Pod { key: key("two"), ..pod("other", "2", "10.0.1.2", 81) };
    node.compiler.set_pod(&renamed);
    node.compiler.set_pod(&pod("new", "2", "10.0.1.1", 1));
    node.compiler.set_pod(&pod("six", "2", "fd00::1", 1));
    node.step();
    assert_eq!(node.problems(), [(DB, Instead::Part, Resource::Peers)]);
    let reached = ["10.0.1.2", "10.0.1.1", "fd00::1"].map(|from| node.reaches(DB, from, 80));
    assert_eq!(reached, [true, false, true]);
    assert!(node.reaches(WEB, "10.0.1.2", 80));
}

/// Rules that look at a peer for which there was no room before them are in force in part as well; a rule
/// that looks at others is not.
#[test]
fn rules_that_come_after_a_peer_was_left_out_lack_it_too() {
    let mut node = Node::new(Limits { peers: 1, ..Limits::default() });
    let tiers = |name, subject, port| {
        policy(name, Some(subject), vec![rule(peers("tier", "1"), 80), rule(peers("tier", "3"), port)])
    };
    node.set(&tiers("first", "db", 81));
    node.compiler.set_pod(&pod("three", "3", "10.0.1.3", 1));
    node.step();
    assert_eq!(node.problems(), [(DB, Instead::Part, Resource::Peers)]);
    // Selectors that are in use already move no pod.
    node.set(&tiers("second", "web", 82));
    node.set(&policy("third", Some("plain"), vec![rule(peers("tier", "1"), 80)]));
    let expected = [(DB, Instead::Part, Resource::Peers), (WEB, Instead::Part, Resource::Peers)];
    assert_eq!(node.problems(), expected);
    assert!(node.reaches(WEB, "10.0.1.1", 80) && !node.reaches(WEB, "10.0.1.3", 82));
    assert!(node.reaches(PLAIN, "10.0.1.1", 80));
    node.compiler.remove_pod(&key("one"));
    node.step();
    assert_eq!(node.problems(), []);
    assert!(node.reaches(DB, "10.0.1.3", 81) && node.reaches(WEB, "10.0.1.3", 82));
}

/// A number that a pod gives a name, and that there is no class for, is denied; the others' are not.
#[test]
fn a_named_port_too_many_is_denied() {
    let mut node = Node::new(Limits { classes: CLASS_FIRST + 2, ..Limits::default() });
    node.compiler.remove_pod(&key("two"));
    node.compiler.set_pod(&pod("db", "local", "10.0.0.1", 80));
    node.compiler.set_pod(&pod("web", "local", "10.0.0.2", 80));
    node.compiler.set_pod(&pod("plain", "local", "10.0.0.3", 80));
    let http = PortRule { protocol: Protocol::Tcp, port: PortSpec::Named("http".to_owned()) };
    // The newcomer has a row without its number, too.
    let egress = Some(vec![Rule { peers: vec![], ports: vec![http] }, rule(peers("name", "two"), 443)]);
    let named = NetworkPolicy { key: key("n"), subjects: has("name", "db"), ingress: None, egress };
    node.set(&named);
    assert_eq!(node.problems(), []);
    node.compiler.set_pod(&pod("two", "2", "10.0.1.2", 81));
    node.step();
    assert_eq!(node.problems(), [(DB, Instead::Part, Resource::Classes)]);
    let to = |node: &Node, address, port| {
        node.tables.allows(DB, Direction::Egress, ip(address), Target::Port(Protocol::Tcp, port))
    };
    assert!(to(&node, "10.0.1.1", 80) && !to(&node, "10.0.1.2", 81) && !to(&node, "10.0.1.2", 80));
    assert!(to(&node, "10.0.1.2", 443) && !to(&node, "10.0.1.1", 443));
    // New rules that use a name of rules in force are no cause either: they are in force but for that number.
    let http = PortRule { protocol: Protocol::Tcp, port: PortSpec::Named("http".to_owned()) };
    let egress = Some(vec![Rule { peers: vec![], ports: vec![http] }]);
    node.set(&NetworkPolicy { key: key("m"), subjects: has("name", "web"), ingress: None, egress });
    let both = [DB, WEB].map(|slot| (slot, Instead::Part, Resource::Classes));
    assert_eq!(node.problems(), both);
    let from_web = |address, port| {
        node.tables.allows(WEB, Direction::Egress, ip(address), Target::Port(Protocol::Tcp, port))
    };
    assert!(from_web("10.0.1.1", 80) && !from_web("10.0.1.2", 81) && !from_web("10.0.1.2", 80));
    assert!(to(&node, "10.0.1.1", 80) && !to(&node, "10.0.1.2", 81));
    // All others give it up: its class becomes the newcomer's.
    for name in ["db", "web", "plain", "one"] {
        let mut pod = pod(name, "local", "10.0.0.1", 81);
        pod.ips = vec![];
        node.compiler.set_pod(&pod);
    }
    node.step();
    while node.compiler.is_dirty() {
        node.step();
    }
    assert_eq!(node.problems(), []);
    assert!(to(&node, "10.0.1.2", 81) && !to(&node, "10.0.1.2", 80) && to(&node, "10.0.1.2", 443));
}

/// What is open to everyone is a port set too: at the exact number it fits, one more and the newest that has
/// one of its own gives way, whoever came after it without one.
#[test]
fn sets_that_are_open_to_everyone_count() {
    let open = |name, subject, port| {
        let rule = Rule { peers: vec![], ..rule(peers("name", "one"), port) };
        policy(name, Some(subject), vec![rule])
    };
    for (sets, expected) in [
        (2, vec![]),
        (1, vec![(WEB, Instead::Closed, Resource::Sets)]),
        (0, vec![(DB, Instead::Closed, Resource::Sets), (WEB, Instead::Closed, Resource::Sets)]),
    ] {
        let mut node = Node::new(Limits { sets, ..Limits::default() });
        node.compiler.set_policy(&open("first", "db", 80));
        node.compiler.set_policy(&open("second", "web", 81));
        node.compiler.set_policy(&policy("third", Some("plain"), vec![]));
        node.step();
        assert_eq!(node.problems(), expected, "{sets}");
        assert_eq!(node.reaches(DB, "192.0.2.1", 80), sets > 0);
        assert_eq!(node.reaches(WEB, "192.0.2.1", 81), sets > 1);
        assert!(!node.reaches(PLAIN, "192.0.2.1", 80));
    }
}

/// What takes whole classes needs no new one.
#[test]
fn ports_that_are_a_class_already_fit_when_classes_are_full() {
    let mut node = Node::new(Limits { classes: CLASS_FIRST + 1, ..Limits::default() });
    node.set(&policy("first", Some("db"), vec![rule(peers("name", "one"), 80)]));
    let udp = PortRule { protocol: Protocol::Udp, port: PortSpec::Any };
    let rules = vec![Rule { ports: vec![udp], ..rule(peers("name", "one"), 0) }];
    node.set(&policy("second", Some("web"), rules));
    assert_eq!(node.problems(), []);
    assert!(!node.reaches(WEB, "10.0.1.1", 80));
    let udp = Target::Port(Protocol::Udp, 80);
    assert!(node.tables.allows(WEB, Direction::Ingress, ip("10.0.1.1"), udp));
}

/// Rows that share a set need room for one.
#[test]
fn rows_share_a_set_when_sets_are_full() {
    let mut node = Node::new(Limits { sets: 1, ..Limits::default() });
    node.set(&policy("first", Some("db"), vec![rule(peers("name", "one"), 80)]));
    let both = vec![rule(peers("name", "one"), 80), rule(peers("name", "two"), 80)];
    node.set(&policy("first", Some("db"), both));
    assert_eq!(node.problems(), []);
    assert!(node.reaches(DB, "10.0.1.1", 80) && node.reaches(DB, "10.0.1.2", 80));
}

/// A limit that is never met costs nothing: trying again comes to an end.
#[test]
fn trying_again_comes_to_an_end() {
    for (resource, limits, fits, more) in too_small() {
        let mut node = Node::new(limits);
        node.set(&policy("first", Some("db"), fits));
        node.set(&policy("first", Some("db"), more));
        let mut steps = 0;
        while node.compiler.is_dirty() {
            node.step();
            steps += 1;
            assert!(steps < 5, "{resource:?}");
        }
    }
}
