//! What a change costs, counted in things touched: in proportion to what sees it, whatever else there is.
#![expect(clippy::unwrap_used, reason = "the literals of the cases parse")]

use std::net::{IpAddr, Ipv4Addr};

use fairlead_policy::compiler::{Compiler, Limits, Stats, Work};
use fairlead_policy::model::{
    LabelSelector, Labels, Namespace, NetworkPolicy, ObjectKey, Operator, Peer, Pod, PortRule, PortSpec,
    Protocol, Requirement, Rule,
};
use fairlead_policy::tables::{Delta, Slot};

const APPS: [&str; 5] = ["web", "db", "job", "cache", "mail"];
/// Pods of each app in each namespace at scale 1.
const REPLICAS: usize = 2;
/// Namespaces at scale 1.
const NAMESPACES: usize = 4;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn select(pairs: &[(&str, &str)]) -> LabelSelector {
    let requirement = |&(key, value): &(&str, &str)| Requirement {
        key: key.to_owned(),
        operator: Operator::In(vec![value.to_owned()]),
    };
    LabelSelector { requirements: pairs.iter().map(requirement).collect() }
}

fn namespace(n: usize) -> Namespace {
    let team = if n == 1 { "ops" } else { "dev" };
    Namespace { name: format!("ns-{n}"), labels: labels(&[("team", team)]) }
}

fn pod(n: usize, name: &str, pairs: &[(&str, &str)], address: IpAddr) -> Pod {
    Pod {
        key: ObjectKey::new(namespace(n).name, name),
        uid: String::new(),
        labels: labels(pairs),
        ips: vec![address],
        node: None,
        host_network: false,
        finished: false,
        ports: Vec::new(),
    }
}

/// Addresses of pods, 10.0.0.0 on.
fn address(n: usize) -> IpAddr {
    Ipv4Addr::from_bits((10 << 24) + n as u32).into()
}

fn rule(peers: Vec<Peer>, port: u16) -> Rule {
    let spec = PortSpec::Range { first: port, last: port };
    Rule { peers, ports: vec![PortRule { protocol: Protocol::Tcp, port: spec }] }
}

fn own(pairs: &[(&str, &str)]) -> Peer {
    Peer::Pods { namespaces: None, pods: select(pairs) }
}

fn ops(pairs: &[(&str, &str)]) -> Peer {
    Peer::Pods { namespaces: Some(select(&[("team", "ops")])), pods: select(pairs) }
}

fn block(cidr: &str) -> Peer {
    Peer::IpBlock { cidr: cidr.parse().unwrap(), except: vec![] }
}

fn policy(n: usize, name: &str, subjects: &[(&str, &str)], rules: Vec<Rule>) -> NetworkPolicy {
    let key = ObjectKey::new(namespace(n).name, name);
    NetworkPolicy { key, subjects: select(subjects), ingress: Some(rules), egress: None }
}

/// `ns-0/web-0`, `ns-0/web-1`, `ns-0/db-0` and `ns-1/web-0` are local. In `ns-0`, policy `db` opens `db` to
/// `web` and to `job` of `ns-1`, policy `web` opens `web` to `web` and to an outside block; `ns-1` has
/// neither. Of everything else there is `scale` times as much: namespaces, their pods and their policies.
fn told(scale: usize) -> Compiler {
    let mut compiler = Compiler::new(Limits::default());
    let mut slot: Slot = 0;
    for n in 0..NAMESPACES * scale {
        compiler.set_namespace(&namespace(n));
        for (a, app) in APPS.into_iter().enumerate() {
            for replica in 0..REPLICAS {
                let name = format!("{app}-{replica}");
                let number = (n * APPS.len() + a) * REPLICAS + replica;
                compiler.set_pod(&pod(n, &name, &[("app", app)], address(number)));
                if matches!((n, &*name), (0, "web-0" | "web-1" | "db-0") | (1, "web-0")) {
                    slot += 1;
                    compiler.set_endpoint(slot, Some(ObjectKey::new(namespace(n).name, name)), vec![]);
                }
            }
        }
        if n > 1 {
            compiler.set_policy(&policy(n, "all", &[], vec![rule(vec![own(&[("app", "web")])], 80)]));
        }
    }
    let to_db = vec![own(&[("app", "web")]), ops(&[("app", "job")])];
    compiler.set_policy(&policy(0, "db", &[("app", "db")], vec![rule(to_db, 5432)]));
    let to_web = vec![own(&[("app", "web")]), block("203.0.113.0/24")];
    compiler.set_policy(&policy(0, "web", &[("app", "web")], vec![rule(to_web, 80)]));
    let delta = compiler.commit();
    compiler.settled(delta.serial);
    compiler
}

/// What a step writes and what it touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cost {
    /// Selectors evaluated.
    evaluations: u64,
    /// Endpoints whose rules are put together anew, and those written.
    judged: u64,
    endpoints: usize,
    signatures: u64,
    /// Addresses whose atom is looked up anew, and those written.
    addresses: u64,
    peers: usize,
    /// Rows worked out, and those written, removed ones included.
    filled: u64,
    rows: usize,
    cidrs: usize,
    /// Atoms that have come, less those that have gone.
    atoms: isize,
}

fn cost(compiler: &mut Compiler, change: impl FnOnce(&mut Compiler)) -> Cost {
    let (work, stats) = (compiler.work(), compiler.stats());
    change(compiler);
    let Delta { serial, rows, peers, cidrs, endpoints, .. } = compiler.commit();
    compiler.settled(serial);
    let Work { evaluations, endpoints: judged, signatures, addresses, rows: filled } = compiler.work() - work;
    Cost {
        evaluations,
        judged,
        endpoints: endpoints.len(),
        signatures,
        addresses,
        peers: peers.len(),
        filled,
        rows: rows.len(),
        cidrs: cidrs.len(),
        atoms: compiler.stats().atoms as isize - stats.atoms as isize,
    }
}

/// How much there is of what. Port classes merge only when many are in use.
fn sizes(compiler: &Compiler) -> Stats {
    Stats { classes: 0, ..compiler.stats() }
}

/// A change costs this, in the small cluster and in ten times as much, and after it has been undone and
/// done again.
fn costs(what: &str, expected: Cost, change: impl Fn(&mut Compiler), undo: impl Fn(&mut Compiler)) {
    for scale in [1, 10] {
        let mut compiler = told(scale);
        assert_eq!(cost(&mut compiler, &change), expected, "{what}, scale {scale}");
        undo(&mut compiler);
        let delta = compiler.commit();
        compiler.settled(delta.serial);
        assert_eq!(sizes(&compiler), sizes(&told(scale)), "{what}, undone, scale {scale}");
        assert_eq!(cost(&mut compiler, &change), expected, "{what}, again, scale {scale}");
    }
}

fn new_pod(n: usize, pairs: &[(&str, &str)]) -> Pod {
    pod(n, "new", pairs, "10.255.0.1".parse().unwrap())
}

fn no_pod(n: usize) -> impl Fn(&mut Compiler) {
    move |compiler| compiler.remove_pod(&ObjectKey::new(namespace(n).name, "new"))
}

#[test]
fn a_pod_that_no_rule_looks_at_touches_nothing() {
    let cache = Cost::default();
    costs("known labels", cache, |c| c.set_pod(&new_pod(2, &[("app", "cache")])), no_pod(2));
    costs("new labels", cache, |c| c.set_pod(&new_pod(2, &[("app", "new")])), no_pod(2));
}

/// One more pod of a class: its address, whatever the cluster.
#[test]
fn a_pod_that_joins_its_like_costs_one_address() {
    let one = Cost { addresses: 1, peers: 1, ..Cost::default() };
    costs("selected in its namespace", one, |c| c.set_pod(&new_pod(0, &[("app", "web")])), no_pod(0));
    costs("selected from elsewhere", one, |c| c.set_pod(&new_pod(1, &[("app", "job")])), no_pod(1));
    // A new group asks the selectors of its namespace that could match: here, that for `web`.
    let new_labels = Cost { evaluations: 1, ..one };
    let pairs = [("app", "web"), ("hash", "1")];
    costs("other labels of its own", new_labels, |c| c.set_pod(&new_pod(0, &pairs)), no_pod(0));
}

/// The only pod of its class gets other labels, but no rule sees a difference: class, atom and rows stay.
#[test]
fn a_pod_that_moves_between_groups_of_one_class_keeps_its_rows() {
    let set = |compiler: &mut Compiler, hash: &str| {
        compiler.set_pod(&pod(1, "job-0", &[("app", "job"), ("hash", hash)], address(14)));
    };
    for scale in [1, 10] {
        let mut compiler = told(scale);
        compiler.remove_pod(&ObjectKey::new("ns-1", "job-1"));
        set(&mut compiler, "1");
        compiler.commit();
        let expected = Cost { evaluations: 2, addresses: 1, ..Cost::default() };
        assert_eq!(cost(&mut compiler, |c| set(c, "2")), expected, "scale {scale}");
        // The same for one pod that takes another's place.
        let replace = |c: &mut Compiler| {
            c.remove_pod(&ObjectKey::new("ns-1", "job-0"));
            c.set_pod(&new_pod(1, &[("app", "job"), ("hash", "3")]));
        };
        let expected = Cost { evaluations: 2, addresses: 2, peers: 2, ..Cost::default() };
        assert_eq!(cost(&mut compiler, replace), expected, "replaced, scale {scale}");
    }
}

/// Two selectors see the pod as nobody else: one atom, and a row for each signature that allows it.
#[test]
fn a_pod_unlike_all_others_costs_its_atom_and_a_row_for_each_signature_that_sees_it() {
    for scale in [1, 10] {
        let mut compiler = told(scale);
        let hash = own(&[("hash", "1")]);
        compiler.set_policy(&policy(0, "hash", &[("app", "db")], vec![rule(vec![hash.clone()], 1)]));
        compiler.set_policy(&policy(0, "hash-web", &[("app", "web")], vec![rule(vec![hash], 2)]));
        compiler.commit();
        let set = |c: &mut Compiler| c.set_pod(&new_pod(0, &[("app", "web"), ("hash", "1")]));
        let expected =
            Cost { evaluations: 2, addresses: 1, peers: 1, filled: 2, rows: 2, atoms: 1, ..Cost::default() };
        assert_eq!(cost(&mut compiler, set), expected, "scale {scale}");
        let expected = Cost { addresses: 1, peers: 1, rows: 2, atoms: -1, ..Cost::default() };
        assert_eq!(cost(&mut compiler, no_pod(0)), expected, "gone, scale {scale}");
    }
}

/// A namespace's labels concern its pods alone.
#[test]
fn a_namespace_costs_its_own_pods() {
    let label = |team: &'static str| {
        move |compiler: &mut Compiler| {
            compiler.set_namespace(&Namespace { name: "ns-2".to_owned(), labels: labels(&[("team", team)]) });
        }
    };
    let jobs = Cost { evaluations: 2, addresses: 2, peers: 2, ..Cost::default() };
    costs("now selected", jobs, label("ops"), label("dev"));
    let asked = Cost { evaluations: 1, ..Cost::default() };
    costs("selected neither way", asked, label("sales"), label("dev"));
}

/// The rules of a pod that policies select are put together anew; those of others are not. Here nothing else
/// looks at `job` of `ns-1`, so its atom and its two pods go out of the tables.
#[test]
fn a_local_pods_labels_cost_its_own_endpoint() {
    let to = |app: &'static str| {
        move |compiler: &mut Compiler| compiler.set_pod(&pod(0, "db-0", &[("app", app)], address(2)))
    };
    let expected = Cost {
        evaluations: 2,
        judged: 1,
        endpoints: 1,
        addresses: 2,
        peers: 2,
        rows: 2,
        atoms: -1,
        ..Cost::default()
    };
    costs("loses its policy", expected, to("mail"), to("db"));
}

fn no_policy(n: usize, name: &'static str) -> impl Fn(&mut Compiler) {
    move |compiler| compiler.remove_policy(&ObjectKey::new(namespace(n).name, name))
}

#[test]
fn a_policy_of_pods_that_are_not_here_touches_nothing() {
    let elsewhere = policy(2, "new", &[], vec![rule(vec![ops(&[])], 1)]);
    costs("no endpoint", Cost::default(), |c| c.set_policy(&elsewhere), no_policy(2, "new"));
    let others = policy(0, "new", &[("app", "cache")], vec![rule(vec![ops(&[])], 1)]);
    // Its subjects are looked for among the three endpoints of the namespace.
    let asked = Cost { evaluations: 3, ..Cost::default() };
    costs("not selected", asked, |c| c.set_policy(&others), no_policy(0, "new"));
}

/// Selectors in use, another port: its endpoints' signature, and a row for each atom that it looks at. Two
/// rows come, those of the older signature go.
#[test]
fn a_policys_ports_cost_its_endpoints_and_their_rows() {
    let web = |port| policy(0, "new", &[("app", "web")], vec![rule(vec![own(&[("app", "web")])], port)]);
    let one = Cost {
        evaluations: 9,
        judged: 2,
        endpoints: 2,
        signatures: 1,
        filled: 2,
        rows: 4,
        ..Cost::default()
    };
    costs("one more", one, |c| c.set_policy(&web(81)), no_policy(0, "new"));
    for scale in [1, 10] {
        let mut compiler = told(scale);
        compiler.set_policy(&web(81));
        compiler.commit();
        let other = Cost { evaluations: 10, ..one };
        assert_eq!(cost(&mut compiler, |c| c.set_policy(&web(82))), other, "scale {scale}");
        let same = Cost::default();
        assert_eq!(cost(&mut compiler, |c| c.set_policy(&web(82))), same, "the same, scale {scale}");
    }
}

/// A selector that is new splits what it cuts, and nothing else.
#[test]
fn a_new_selector_costs_the_pods_that_it_cuts_out() {
    let one =
        Cost { judged: 1, endpoints: 1, signatures: 1, filled: 3, rows: 5, atoms: 1, ..Cost::default() };
    let cache = policy(0, "new", &[("app", "db")], vec![rule(vec![own(&[("app", "cache")])], 1)]);
    let two = Cost { evaluations: 11, addresses: 2, peers: 2, ..one };
    costs("pods not seen so far", two, |c| c.set_policy(&cache), no_policy(0, "new"));
    // Its two `job`s are in the tables already, and a class to themselves: they stay what they are.
    let ops = policy(0, "new", &[("app", "db")], vec![rule(vec![ops(&[])], 1)]);
    let eight = Cost { evaluations: 7, addresses: 8, peers: 8, ..one };
    costs("a namespace's", eight, |c| c.set_policy(&ops), no_policy(0, "new"));
}

/// A block that is new touches the addresses within it, of those that stand in the tables.
#[test]
fn a_block_costs_the_addresses_within() {
    let new = |cidr| policy(0, "new", &[("app", "db")], vec![rule(vec![block(cidr)], 1)]);
    let one = Cost {
        evaluations: 6,
        judged: 1,
        endpoints: 1,
        signatures: 1,
        filled: 3,
        rows: 5,
        cidrs: 1,
        atoms: 1,
        ..Cost::default()
    };
    costs("outside", one, |c| c.set_policy(&new("198.51.100.0/24")), no_policy(0, "new"));
    costs("unseen pods", one, |c| c.set_policy(&new("10.0.0.6/31")), no_policy(0, "new"));
    let half = Cost { filled: 4, rows: 6, ..one };
    costs("half of a region", half, |c| c.set_policy(&new("203.0.113.0/25")), no_policy(0, "new"));
    let pods = Cost { addresses: 2, peers: 2, filled: 4, rows: 7, ..one };
    costs("two pods", pods, |c| c.set_policy(&new("10.0.0.0/31")), no_policy(0, "new"));
}

/// An endpoint that comes or goes costs itself and its addresses.
#[test]
fn an_endpoint_costs_itself() {
    let put = |c: &mut Compiler| c.set_endpoint(9, Some(ObjectKey::new("ns-0", "db-1")), vec![address(3)]);
    let one = Cost { evaluations: 2, judged: 1, endpoints: 1, addresses: 1, ..Cost::default() };
    costs("one more", one, put, |c| c.remove_endpoint(9));
}
