//! Objects: every kind applied, deleted and left out; everything that can be wrong with one.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::HashSet;

use fairlead_index::kubernetes::{read, unpack};
use fairlead_index::{Change, Effect, Index, Kind, Object, ObjectId, Outcome, Parsed};
use fairlead_policy::model::{
    LabelSelector, NetworkPolicy, ObjectKey, Operator, Peer, PortRule, PortSpec, Protocol, Requirement, Rule,
};
use serde_json::{Value, json};

fn parsed(value: Value) -> Parsed {
    let (id, outcome) = read(&value).unwrap();
    Parsed { id, origin: None, outcome }
}

fn policy(spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
}

fn good_policy(spec: Value) -> NetworkPolicy {
    match parsed(policy(spec)).outcome {
        Outcome::Good(Object::NetworkPolicy(policy)) => policy,
        other => panic!("{other:?}"),
    }
}

/// Fields that are wrong, and what stands in.
fn bad(value: Value) -> (Vec<String>, Option<Object>) {
    match parsed(value).outcome {
        Outcome::Bad { errors, instead } => (errors.into_iter().map(|e| e.field).collect(), instead),
        Outcome::Good(object) => panic!("good: {object:?}"),
    }
}

fn is(key: &str, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), operator: Operator::In(vec![value.to_owned()]) }
}

#[test]
fn a_whole_policy() {
    let policy = good_policy(json!({
        "podSelector": {"matchLabels": {"app": "web"},
                        "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["b", "a", "b"]}]},
        "policyTypes": ["Egress", "Ingress"],
        "ingress": [
            {},
            {"from": [{"podSelector": {}}, {"namespaceSelector": {"matchLabels": {"team": "x"}}},
                      {"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.1.0.0/16"]}}],
             "ports": [{}, {"port": 80}, {"port": "http", "protocol": "UDP"},
                       {"port": 1000, "endPort": 2000, "protocol": "SCTP"}]},
        ],
    }));
    assert_eq!(policy.key, ObjectKey::new("shop", "p"));
    let not_in = Operator::NotIn(vec!["a".to_owned(), "b".to_owned()]);
    let tier = Requirement { key: "tier".to_owned(), operator: not_in };
    assert_eq!(policy.subjects.requirements, [is("app", "web"), tier]);
    let port = |protocol, port| PortRule { protocol, port };
    let expected = vec![
        Rule { peers: vec![], ports: vec![] },
        Rule {
            peers: vec![
                Peer::Pods { namespaces: None, pods: LabelSelector::default() },
                Peer::Pods {
                    namespaces: Some(LabelSelector { requirements: vec![is("team", "x")] }),
                    pods: LabelSelector::default(),
                },
                Peer::IpBlock {
                    cidr: "10.0.0.0/8".parse().unwrap(),
                    except: vec!["10.1.0.0/16".parse().unwrap()],
                },
            ],
            ports: vec![
                port(Protocol::Tcp, PortSpec::Any),
                port(Protocol::Tcp, PortSpec::Range { first: 80, last: 80 }),
                port(Protocol::Udp, PortSpec::Named("http".to_owned())),
                port(Protocol::Sctp, PortSpec::Range { first: 1000, last: 2000 }),
            ],
        },
    ];
    assert_eq!(policy.ingress, Some(expected));
    assert_eq!(policy.egress, Some(vec![]));
}

#[test]
fn defaults_of_policy_types() {
    let directions = |spec| {
        let policy = good_policy(spec);
        (policy.ingress.is_some(), policy.egress.is_some())
    };
    assert_eq!(directions(json!({})), (true, false));
    assert_eq!(directions(json!({"podSelector": null, "ingress": null})), (true, false));
    assert_eq!(directions(json!({"policyTypes": []})), (true, false));
    assert_eq!(directions(json!({"egress": []})), (true, false));
    assert_eq!(directions(json!({"egress": [{}]})), (true, true));
    assert_eq!(directions(json!({"policyTypes": ["Egress"], "ingress": [{}]})), (false, true));
    assert_eq!(directions(json!({"policyTypes": ["Ingress"], "egress": [{}]})), (true, false));
    assert_eq!(good_policy(json!({"ingress": [{"from": [], "ports": []}]})).ingress.unwrap().len(), 1);
}

#[test]
fn every_wrong_field_is_named() {
    let peer = |peer: Value| json!({"ingress": [{}, {"from": [{"podSelector": {}}, peer]}]});
    let port = |port: Value| json!({"egress": [{"ports": [port]}]});
    let subject = |expression: Value| json!({"podSelector": {"matchExpressions": [expression]}});
    let block = |cidr: &str, except: &[&str]| peer(json!({"ipBlock": {"cidr": cidr, "except": except}}));
    let table = [
        (block("10.0.0.0/33", &[]), "spec.ingress[1].from[1].ipBlock.cidr"),
        (block("10.0.0.1", &[]), "spec.ingress[1].from[1].ipBlock.cidr"),
        (block("10.0.0.0/255.0.0.0", &[]), "spec.ingress[1].from[1].ipBlock.cidr"),
        (block("fd00::/129", &[]), "spec.ingress[1].from[1].ipBlock.cidr"),
        (block("", &[]), "spec.ingress[1].from[1].ipBlock.cidr"),
        (block("10.0.0.0/8", &["11.0.0.0/16"]), "spec.ingress[1].from[1].ipBlock.except[0]"),
        (block("10.0.0.0/8", &["10.0.0.0/8"]), "spec.ingress[1].from[1].ipBlock.except[0]"),
        (block("10.0.0.0/8", &["10.1.0.0/16", "fd00::/64"]), "spec.ingress[1].from[1].ipBlock.except[1]"),
        (peer(json!({"ipBlock": {"except": []}})), "spec.ingress[1].from[1].ipBlock"),
        (
            peer(json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}})),
            "spec.ingress[1].from[1].ipBlock",
        ),
        (peer(json!({})), "spec.ingress[1].from[1]"),
        (peer(json!({"podSelector": null})), "spec.ingress[1].from[1]"),
        (peer(json!(null)), "spec.ingress[1].from[1]"),
        (peer(json!({"podSelctor": {}})), "spec.ingress[1].from[1].podSelctor"),
        (json!({"ingress": [null]}), "spec.ingress[0]"),
        (json!({"ingress": [{"form": []}]}), "spec.ingress[0].form"),
        (json!({"ingress": {}}), "spec.ingress"),
        (json!({"policyTypes": ["ingress"]}), "spec.policyTypes[0]"),
        (json!({"policyTypes": "Ingress"}), "spec.policyTypes"),
        (json!("no spec"), "spec"),
        (port(json!({"port": 0})), "spec.egress[0].ports[0].port"),
        (port(json!({"port": 65536})), "spec.egress[0].ports[0].port"),
        (port(json!({"port": "80"})), "spec.egress[0].ports[0].port"),
        (port(json!({"port": 1.5})), "spec.egress[0].ports[0].port"),
        (port(json!({"protocol": "tcp"})), "spec.egress[0].ports[0].protocol"),
        (port(json!({"port": 80, "endPort": 79})), "spec.egress[0].ports[0].endPort"),
        (port(json!({"port": 80, "endPort": 70000})), "spec.egress[0].ports[0].endPort"),
        (port(json!({"endPort": 80})), "spec.egress[0].ports[0].endPort"),
        (port(json!({"port": "http", "endPort": 80})), "spec.egress[0].ports[0].endPort"),
        (subject(json!({"key": "a", "operator": "In"})), "spec.podSelector.matchExpressions[0].values"),
        (
            subject(json!({"key": "a", "operator": "Exists", "values": ["x"]})),
            "spec.podSelector.matchExpressions[0].values",
        ),
        (subject(json!({"key": "a", "operator": "Is"})), "spec.podSelector.matchExpressions[0].operator"),
        (subject(json!({"key": "-a", "operator": "Exists"})), "spec.podSelector.matchExpressions[0].key"),
        (
            subject(json!({"key": "a", "operator": "In", "values": ["ok", "not ok"]})),
            "spec.podSelector.matchExpressions[0].values[1]",
        ),
        (json!({"podSelector": {"matchLabels": {"a": true}}}), "spec.podSelector.matchLabels.a"),
        (json!({"podSelector": {"matchLabels": {"a b": "x"}}}), "spec.podSelector.matchLabels[\"a b\"]"),
    ];
    for (spec, field) in table {
        let (fields, instead) = bad(policy(spec.clone()));
        assert_eq!(fields, [field], "{spec}");
        assert!(matches!(instead, Some(Object::NetworkPolicy(_))), "{spec}");
    }
    // All that is wrong at once.
    let spec = json!({"policyTypes": ["x"], "ingress": [{"ports": [{"port": 0}, {"port": -1}]}]});
    assert_eq!(
        bad(policy(spec)).0,
        ["spec.ingress[0].ports[0].port", "spec.ingress[0].ports[1].port", "spec.policyTypes[0]"]
    );
}

#[test]
fn other_kinds_name_their_wrong_fields() {
    let object = |kind: &str, rest: Value| {
        let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}});
        for (key, value) in rest.as_object().unwrap() {
            object[key] = value.clone();
        }
        object
    };
    let ports = |port: Value| json!({"spec": {"containers": [{}, {"ports": [port]}]}});
    let table = [
        (object("Node", json!({"spec": {"podCIDRs": ["10.0.0.0/24", "x"]}})), "spec.podCIDRs[1]"),
        (object("Node", json!({"spec": {"podCIDR": "x"}})), "spec.podCIDR"),
        (
            object("Node", json!({"status": {"addresses": [{"type": "InternalIP", "address": "x"}]}})),
            "status.addresses[0].address",
        ),
        (
            object("Namespace", json!({"metadata": {"name": "x", "labels": {"a": "b c"}}})),
            "metadata.labels[\"a\"]",
        ),
        (object("Namespace", json!({"metadata": {"name": "x", "labels": ["a"]}})), "metadata.labels"),
        (object("Pod", json!({"status": {"podIPs": [{"ip": "1.2.3"}]}})), "status.podIPs[0].ip"),
        (object("Pod", ports(json!({"name": "web"}))), "spec.containers[1].ports[0]"),
        (
            object("Pod", ports(json!({"name": "web", "containerPort": 0}))),
            "spec.containers[1].ports[0].containerPort",
        ),
        (
            object("Pod", ports(json!({"name": "80", "containerPort": 80}))),
            "spec.containers[1].ports[0].name",
        ),
        (object("Pod", json!({"spec": {"hostNetwork": "yes"}})), "spec.hostNetwork"),
        (object("Service", json!({"spec": {"clusterIP": "10"}})), "spec.clusterIP"),
        (
            object("Service", json!({"status": {"loadBalancer": {"ingress": [{"ip": "x"}]}}})),
            "status.loadBalancer.ingress[0].ip",
        ),
    ];
    for (value, field) in table {
        let (fields, instead) = bad(value.clone());
        assert_eq!((fields.as_slice(), instead), (&[field.to_owned()][..], None), "{value}");
    }
}

#[test]
fn what_is_no_object_says_why() {
    let table = [
        (json!([1]), None),
        (json!({"kind": "Pod"}), Some("apiVersion")),
        (json!({"apiVersion": "v1"}), Some("kind")),
        (json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}}), Some("kind")),
        (json!({"apiVersion": "v2", "kind": "Pod", "metadata": {"name": "x"}}), Some("kind")),
        (json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}}), Some("metadata.name")),
        (json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": 1}}), Some("metadata.name")),
        (json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "A"}}), Some("metadata.name")),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "x.y"}}),
            Some("metadata.namespace"),
        ),
    ];
    for (value, field) in table {
        assert_eq!(read(&value).unwrap_err().field.as_deref(), field, "{value}");
    }
}

#[test]
fn pods_as_policy_needs_them() {
    let value = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "x", "uid": "u1", "labels": {"a": "b"}},
        "spec": {"nodeName": "n", "containers": [
            {"ports": [{"name": "web", "containerPort": 80}, {"containerPort": 9}]},
            {"ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]}],
            "initContainers": [
                {"ports": [{"name": "never", "containerPort": 1}]},
                {"restartPolicy": "Always", "ports": [{"name": "sidecar", "containerPort": 2}]}]},
        "status": {"phase": "Succeeded", "podIP": "10.0.0.9",
                   "podIPs": [{"ip": "10.0.0.1"}, {"ip": "::ffff:10.0.0.2"}, {"ip": "fd00::1"}]},
    });
    let Outcome::Good(Object::Pod(pod)) = parsed(value).outcome else { panic!() };
    assert_eq!(
        (pod.key.namespace.as_str(), pod.uid.as_str(), pod.node.as_deref()),
        ("default", "u1", Some("n"))
    );
    assert!(pod.finished && !pod.host_network);
    let ports: Vec<_> = pod.ports.iter().map(|p| (p.name.as_str(), p.protocol, p.port)).collect();
    let expected = [("web", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53), ("sidecar", Protocol::Tcp, 2)];
    assert_eq!(ports, expected);
    let ips: Vec<String> = pod.ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.0.0.1", "10.0.0.2", "fd00::1"]);
    // The runtime knows a static pod by the hash of its configuration.
    let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "uid": "mirror",
        "annotations": {"kubernetes.io/config.hash": "hash"}}});
    let Outcome::Good(Object::Pod(pod)) = parsed(value).outcome else { panic!() };
    assert_eq!(pod.uid, "hash");
}

#[test]
fn namespaces_nodes_and_services() {
    let value = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "x", "labels": {"a": "b", "kubernetes.io/metadata.name": "forged"}}});
    let Outcome::Good(Object::Namespace(namespace)) = parsed(value).outcome else { panic!() };
    assert_eq!(namespace.labels["kubernetes.io/metadata.name"], "x");
    let value = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.7/24", "fd00::/64"]},
        "status": {"addresses": [{"type": "Hostname", "address": "n"}, {"type": "ExternalIP", "address": "5.6.7.8"},
                                 {"type": "InternalIP", "address": "192.0.2.1"}]}});
    let Outcome::Good(Object::Node(node)) = parsed(value).outcome else { panic!() };
    assert_eq!(node.pod_cidrs, ["10.1.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()]);
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.1", "5.6.7.8"]);
    let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd01::1"], "externalIPs": ["9.9.9.9"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "8.8.8.8"}, {"hostname": "x"}]}}});
    let Outcome::Good(Object::Service(service)) = parsed(value).outcome else { panic!() };
    assert_eq!(service.addresses.len(), 4);
    let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"clusterIP": "None", "clusterIPs": ["None"]}});
    let Outcome::Good(Object::Service(service)) = parsed(value).outcome else { panic!() };
    assert!(service.addresses.is_empty());
}

#[test]
fn a_balancer_that_sends_to_nodes_and_pods_itself_has_no_service_address() {
    let addresses = |external: Value, ingress: Value| -> Vec<String> {
        let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"clusterIP": "10.96.0.1", "externalIPs": external},
            "status": {"loadBalancer": {"ingress": ingress}}});
        let Outcome::Good(Object::Service(service)) = parsed(value).outcome else { panic!() };
        service.addresses.iter().map(ToString::to_string).collect()
    };
    let proxy = json!({"ip": "8.8.8.8", "ipMode": "Proxy"});
    assert_eq!(addresses(Value::Null, json!([proxy])), ["10.96.0.1"]);
    let vip = json!({"ip": "8.8.4.4", "ipMode": "VIP"});
    assert_eq!(addresses(Value::Null, json!([proxy, vip])), ["8.8.4.4", "10.96.0.1"]);
    // Named elsewhere too, nodes do translate it.
    assert_eq!(addresses(json!(["8.8.8.8"]), json!([proxy])), ["8.8.8.8", "10.96.0.1"]);
}

#[test]
fn lists_are_taken_apart() {
    let pod = json!({"metadata": {"name": "a"}});
    let list = json!({"apiVersion": "v1", "kind": "PodList", "items": [pod]});
    let both = json!({"apiVersion": "v1", "kind": "List", "items": [
        list, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}]});
    let ids: Vec<String> = unpack(both).iter().map(|v| read(v).unwrap().0.to_string()).collect();
    assert_eq!(ids, ["Pod default/a", "Namespace b"]);
}

fn stand_in(spec: Value) -> NetworkPolicy {
    match bad(policy(spec)).1 {
        Some(Object::NetworkPolicy(policy)) => policy,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_policy_that_cannot_be_read_denies_at_least_what_it_selects() {
    let wrong_port = json!([{"ports": [{"port": 0}]}]);
    // Selector and directions as they are, when only a rule is wrong.
    let policy = stand_in(json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": wrong_port}));
    assert_eq!(policy.subjects.requirements, [is("app", "a")]);
    assert_eq!((policy.ingress, policy.egress), (Some(vec![]), None));
    let policy = stand_in(json!({"policyTypes": ["Egress"], "egress": wrong_port}));
    assert_eq!((policy.ingress, policy.egress), (None, Some(vec![])));
    let policy = stand_in(json!({"egress": wrong_port}));
    assert_eq!((policy.ingress, policy.egress), (Some(vec![]), Some(vec![])));
    // A requirement that cannot be read is left out: more pods are selected.
    let policy = stand_in(json!({"podSelector": {"matchLabels": {"app": "a", "b": 1},
        "matchExpressions": [{"key": "c", "operator": "Is"}, {"key": "d", "operator": "Exists"}]}}));
    let d = Requirement { key: "d".to_owned(), operator: Operator::Exists };
    assert_eq!(policy.subjects.requirements, [is("app", "a"), d]);
    // Directions that cannot be read are both.
    for types in [json!(["Egres"]), json!("Ingress"), json!([1])] {
        let policy = stand_in(json!({"policyTypes": types}));
        assert_eq!((policy.ingress, policy.egress), (Some(vec![]), Some(vec![])));
    }
    assert_eq!(stand_in(json!("?")).subjects, LabelSelector::default());
}

#[test]
fn every_kind_is_applied_deleted_and_left_out() {
    let objects: Vec<Parsed> = Kind::ALL
        .into_iter()
        .map(|kind| {
            parsed(json!({"apiVersion": kind.api_version(), "kind": kind.name(), "metadata": {"name": "x"}}))
        })
        .collect();
    for object in objects {
        let mut index = Index::default();
        let id = object.id.clone();
        let Outcome::Good(body) = object.outcome.clone() else { panic!() };
        assert_eq!(index.apply(object.clone()), Some(Effect::Set(body.clone())), "{id}");
        assert_eq!(index.delete(&id), Some(Effect::Removed(id.clone())));
        assert_eq!(index.delete(&id), None);
        index.apply(object.clone());
        let mut other = object.clone();
        other.id.key.name = "y".to_owned();
        let kept = HashSet::from([other.id.key.clone()]);
        index.apply(other);
        assert_eq!(index.only(id.kind, &kept), [Effect::Removed(id.clone())]);
        assert_eq!(index.only(id.kind, &kept), []);
        let another = Kind::ALL.into_iter().find(|kind| *kind != id.kind).unwrap();
        assert_eq!(index.only(another, &HashSet::new()), []);
    }
}

#[test]
fn the_index_knows_pods_and_namespaces() {
    let mut index = Index::default();
    let pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "n", "uid": "u"}});
    index.apply(parsed(pod));
    index.apply(parsed(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}})));
    let key = ObjectKey::new("n", "x");
    assert_eq!((index.pod_uid(&key).as_deref(), index.has_namespace("n")), (Some("u"), true));
    index.delete(&ObjectId { kind: Kind::Pod, key: key.clone() });
    index.only(Kind::Namespace, &HashSet::new());
    assert_eq!((index.pod_uid(&key), index.has_namespace("n")), (None, false));
}

#[test]
fn an_object_that_turns_bad_keeps_its_last_good_state() {
    let mut index = Index::default();
    let good = policy(json!({"ingress": [{}]}));
    let bad = policy(json!({"ingress": [{"ports": [{"port": 0}]}]}));
    assert!(index.apply(parsed(good.clone())).is_some());
    assert_eq!(index.apply(parsed(bad.clone())), None);
    let problems = index.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].object.as_deref(), Some("NetworkPolicy shop/p"));
    assert_eq!(problems[0].field.as_deref(), Some("spec.ingress[0].ports[0].port"));
    assert!(index.apply(parsed(good)).is_some());
    assert_eq!(index.problems(), []);
    // One that never was good is stood in for, each time anew.
    let mut index = Index::default();
    let id = parsed(bad.clone()).id;
    assert!(matches!(index.apply(parsed(bad.clone())), Some(Effect::Set(Object::NetworkPolicy(_)))));
    assert!(index.apply(parsed(bad)).is_some());
    assert_eq!(index.delete(&id), Some(Effect::Removed(id.clone())));
    assert_eq!(index.problems(), []);
    // A pod that never was good is not there.
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "status": {"podIP": "x"}});
    let id = parsed(pod.clone()).id;
    assert_eq!(
        index.update(fairlead_index::Batch {
            changes: vec![Change::Apply(parsed(pod))],
            ..Default::default()
        }),
        []
    );
    assert_eq!(index.problems().len(), 1);
    assert_eq!(index.delete(&id), None);
}

#[test]
fn of_two_nodes_with_one_cidr_the_first_by_name_keeps_it() {
    let node = |name: &str, cidrs: &[&str]| {
        parsed(
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDRs": cidrs}}),
        )
    };
    let mut index = Index::default();
    index.apply(node("b", &["10.1.0.0/24", "fd00::/64"]));
    index.apply(node("c", &["10.1.0.128/25", "10.1.2.0/24"]));
    index.apply(node("d", &["10.0.0.0/8", "fd00:0:0:1::/64"]));
    index.apply(node("a", &["10.1.0.0/24"]));
    let cidrs = |name: &str| {
        let node = index.node(name).unwrap();
        node.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(cidrs("a"), ["10.1.0.0/24"]);
    assert_eq!(cidrs("b"), ["fd00::/64"]);
    assert_eq!(cidrs("c"), ["10.1.2.0/24"]);
    assert_eq!(cidrs("d"), ["fd00:0:0:1::/64"]);
    let fields: Vec<_> =
        index.problems().iter().map(|p| (p.object.clone().unwrap(), p.field.clone().unwrap())).collect();
    let expected =
        [("Node b", "spec.podCIDRs[0]"), ("Node c", "spec.podCIDRs[0]"), ("Node d", "spec.podCIDRs[0]")];
    assert_eq!(fields, expected.map(|(o, f)| (o.to_owned(), f.to_owned())));
    // The CIDR passes on when its owner leaves.
    index.node_changes();
    index.delete(&ObjectId { kind: Kind::Node, key: ObjectKey::new("", "a") });
    let changes = index.node_changes();
    assert_eq!(changes.keys().map(|name| &**name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(changes["a"], None);
    assert_eq!(changes["b"].as_ref().unwrap().pod_cidrs.len(), 2);
}

#[test]
fn a_change_names_the_nodes_that_it_changes_and_no_others() {
    let node = |name: &str, address: &str| {
        parsed(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                      "status": {"addresses": [{"type": "InternalIP", "address": address}]}}))
    };
    let mut index = Index::default();
    let mut changed = |change: &mut dyn FnMut(&mut Index)| {
        change(&mut index);
        let of = |node: Option<std::sync::Arc<fairlead_policy::model::Node>>| {
            node.map(|n| n.addresses[0].to_string())
        };
        index.node_changes().into_iter().map(|(name, node)| (name.to_string(), of(node))).collect::<Vec<_>>()
    };
    let there = |name: &str, address: &str| (name.to_owned(), Some(address.to_owned()));
    assert_eq!(changed(&mut |i| drop(i.apply(node("a", "192.0.2.1")))), [there("a", "192.0.2.1")]);
    assert_eq!(changed(&mut |i| drop(i.apply(node("b", "192.0.2.2")))), [there("b", "192.0.2.2")]);
    // A heartbeat, and something else.
    let namespace = || parsed(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}));
    assert_eq!(changed(&mut |i| drop((i.apply(node("a", "192.0.2.1")), i.apply(namespace())))), []);
    assert_eq!(changed(&mut |i| drop(i.apply(node("a", "192.0.2.3")))), [there("a", "192.0.2.3")]);
    let gone = ObjectId { kind: Kind::Node, key: ObjectKey::new("", "a") };
    assert_eq!(changed(&mut |i| drop(i.delete(&gone))), [("a".to_owned(), None)]);
    assert_eq!(index.node_count(), 1);
}
