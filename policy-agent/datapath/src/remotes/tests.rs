use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;

fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> (Arc<str>, Option<Arc<Node>>) {
    let node = Node {
        name: name.to_owned(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        pod_cidrs: pod_cidrs.iter().map(|c| c.parse().unwrap()).collect(),
    };
    (name.into(), Some(node.into()))
}

/// The maps, as they are once all that was touched is written.
#[derive(Debug, Default, PartialEq, Eq)]
struct Written {
    tunnels: BTreeMap<IpAddr, u32>,
    remotes: BTreeMap<IpNetwork, u32>,
    exits: BTreeMap<u32, [Exit; 2]>,
}

fn copy<K: Ord + Copy>(touched: BTreeSet<K>, from: &Claims<K, u32>, into: &mut BTreeMap<K, u32>) {
    for key in touched {
        match believed(from, &key) {
            Some(number) => into.insert(key, number),
            None => into.remove(&key),
        };
    }
}

impl Written {
    fn take(&mut self, wanted: &mut Wanted) {
        let Touched { tunnels, remotes, exits } = std::mem::take(&mut wanted.touched);
        copy(tunnels, &wanted.tunnels, &mut self.tunnels);
        copy(remotes, &wanted.remotes, &mut self.remotes);
        self.exits.extend(exits.into_iter().map(|number| (number, wanted.exit(number))));
        self.exits.retain(|_, exits| *exits != [Exit::default(); 2]);
    }

    /// Worked out from all nodes, with the numbers that they have.
    fn from_scratch(nodes: &BTreeMap<Arc<str>, Arc<Node>>, exits: &Exits, wanted: &Wanted) -> Self {
        let mut all = Self::default();
        for (name, node) in nodes {
            let (number, _) = wanted.nodes[name];
            let mut tell = |cidr: IpNetwork| {
                let cidr = IpNetwork::new(cidr.network(), cidr.prefix()).unwrap();
                all.remotes.entry(cidr).and_modify(|n| *n = common(*n, number)).or_insert(number);
            };
            node.addresses.iter().for_each(|a| tell((*a).into()));
            node.pod_cidrs.iter().for_each(|c| tell(*c));
            for address in &node.addresses {
                all.tunnels.entry(*address).and_modify(|n| *n = common(*n, number)).or_insert(number);
            }
            all.exits.extend(exits.get(name).filter(|e| **e != [Exit::default(); 2]).map(|e| (number, *e)));
        }
        all
    }
}

fn common(a: u32, b: u32) -> u32 {
    if a == b { a } else { NODE_NONE }
}

#[test]
fn a_node_speaks_for_itself_and_its_pods_and_no_one_for_what_two_claim() {
    let mut wanted = Wanted::default();
    let mut written = Written::default();
    let a = node("a", &["192.0.2.1", "2001:db8::1"], &["10.1.1.7/24"]);
    let b = node("b", &["192.0.2.2", "192.0.2.1"], &["10.1.2.0/24", "10.1.1.0/24"]);
    wanted.set(&[a, b].into());
    written.take(&mut wanted);
    let remote = |w: &Written, cidr: &str| w.remotes.get(&cidr.parse::<IpNetwork>().unwrap()).copied();
    let tunnel = |w: &Written, address: &str| w.tunnels.get(&address.parse::<IpAddr>().unwrap()).copied();
    assert_eq!(remote(&written, "10.1.2.0/24"), Some(2));
    assert_eq!(remote(&written, "2001:db8::1/128"), Some(1));
    let disputed = [remote(&written, "10.1.1.0/24"), remote(&written, "192.0.2.1/32")];
    assert_eq!(disputed, [Some(NODE_NONE); 2]);
    assert_eq!((tunnel(&written, "192.0.2.2"), tunnel(&written, "192.0.2.1")), (Some(2), Some(NODE_NONE)));
    assert_eq!(written.remotes.len(), 5);

    // One that goes leaves the other what both claimed, and its number to the next.
    wanted.set(&[("a".into(), None), node("c", &["192.0.2.3"], &[])].into());
    assert_eq!(wanted.touched.tunnels.len(), 3, "{:?}", wanted.touched);
    written.take(&mut wanted);
    assert_eq!((remote(&written, "10.1.1.0/24"), tunnel(&written, "192.0.2.1")), (Some(2), Some(2)));
    assert_eq!((tunnel(&written, "2001:db8::1"), tunnel(&written, "192.0.2.3")), (None, Some(1)));
}

fn any_node() -> impl Strategy<Value = Node> {
    let address = prop_oneof![
        (0_u8..6).prop_map(|n| IpAddr::from([192, 0, 2, n])),
        (0_u16..3).prop_map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n])),
    ];
    // Some of one address, which may be a node's; some with host bits.
    let cidr = prop_oneof![
        (0_u8..6, 24_u8..27).prop_map(|(n, length)| IpNetwork::new([10, 0, n, 7].into(), length).unwrap()),
        (0_u8..6).prop_map(|n| IpNetwork::new([192, 0, 2, n].into(), 32).unwrap()),
        (0_u16..3).prop_map(|n| IpNetwork::new([0xfd00, 0, 0, n, 0, 0, 0, 1].into(), 64).unwrap()),
    ];
    let name = String::new();
    (vec(address, 0..4), vec(cidr, 0..4)).prop_map(move |(addresses, pod_cidrs)| Node {
        name: name.clone(),
        addresses,
        pod_cidrs,
    })
}

fn any_exits() -> impl Strategy<Value = [Exit; 2]> {
    let exit = prop_oneof![
        Just(Exit::default()),
        (1_u32..3).prop_map(|ifindex| Exit { ifindex, mtu: 1450, ..Exit::default() })
    ];
    [exit.clone(), exit]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_node_by_node_is_what_all_nodes_make_together(
        steps in vec(
            (btree_map(0..5_u8, option::of(any_node()), 0..4), btree_map(0..5_u8, any_exits(), 0..3), any::<bool>()),
            1..20,
        ),
    ) {
        let (mut wanted, mut written) = (Wanted::default(), Written::default());
        let mut nodes: BTreeMap<Arc<str>, Arc<Node>> = BTreeMap::new();
        let mut exits = Exits::new();
        let name = |n: u8| Arc::<str>::from(format!("n{n}"));
        for (changes, new_exits, write) in steps {
            let changes: NodeChanges =
                changes.into_iter().map(|(n, node)| (name(n), node.map(Arc::new))).collect();
            wanted.set(&changes);
            for (name, node) in changes {
                match node {
                    Some(node) => drop(nodes.insert(name, node)),
                    None => drop(nodes.remove(&name)),
                }
            }
            let new_exits: Exits = new_exits.into_iter().map(|(n, e)| (name(n), e)).collect();
            wanted.set_exits(&new_exits);
            exits.extend(new_exits);
            // Numbers are as low as they can be, and nobody shares one.
            let numbers: BTreeSet<u32> = wanted.nodes.values().map(|(number, _)| *number).collect();
            prop_assert_eq!(numbers.len(), nodes.len());
            prop_assert!(wanted.names.keys().eq(&numbers));
            prop_assert_eq!(wanted.next as usize - 1, numbers.len() + wanted.free.len());
            // At times several changes are written together, as after an error.
            if write {
                written.take(&mut wanted);
                prop_assert_eq!(&written, &Written::from_scratch(&nodes, &exits, &wanted));
            }
        }
    }
}
