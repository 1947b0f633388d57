//! Names and policies behind dropped packets.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::SystemTime;

use fairlead_api::drops::{DropEvent, End};
use fairlead_api::status::{self, DirectionExplanation, ObjectName, RuleName};
use fairlead_common::maps::slot_of;
use fairlead_common::reason::DropReason;
use fairlead_datapath::DropRecord;
use fairlead_policy::explain::{self, Party};
use fairlead_policy::model::{ObjectKey, Protocol};
use fairlead_policy::oracle::{Cluster, Direction, Target, Verdict};
use fairlead_policy::tables::Slot;

use super::Engine;
use crate::drops::timestamp;
use crate::enforcer::Enforcer;

impl<E: Enforcer> Engine<E> {
    /// Says of dropped packets whose they were and which policy decided, by the state in force now.
    pub(super) fn resolve(&self, records: &[DropRecord]) -> Vec<DropEvent> {
        let time = timestamp(SystemTime::now());
        let pods: Vec<Option<ObjectKey>> = records.iter().map(|r| self.pod_at(r.ifindex)).collect();
        let addresses = records.iter().filter_map(|r| r.addresses).flat_map(|(a, b)| [a, b]);
        let parties: Vec<Party> =
            addresses.map(Party::Ip).chain(pods.iter().flatten().cloned().map(Party::Pod)).collect();
        // All at once: it is one pass over all pods, however many records there are.
        let cluster = self.compiler.excerpt(&parties.iter().collect::<Vec<_>>());
        let generation = self.enforcer.generation();
        let mut known = HashMap::new();
        let explained = records.iter().zip(&pods).map(|(record, pod)| {
            // A flood is the same question again and again.
            let question = DropRecord { missed: 0, generation: 0, ..*record };
            let policy =
                known.entry(question).or_insert_with(|| explanation(&cluster, record, pod.as_ref())).clone();
            let policy_changed = policy.is_some() && record.generation != generation;
            event(&cluster, record, pod.as_ref(), time.clone(), policy, policy_changed)
        });
        explained.collect()
    }

    /// The pod whose interface this is.
    fn pod_at(&self, ifindex: u32) -> Option<ObjectKey> {
        // Slots have 12 bits.
        let local = self.endpoints.get(&(slot_of(ifindex) as Slot))?;
        let pod = local.attachment.pod.as_ref().filter(|_| local.attachment.host_ifindex == ifindex)?;
        Some(ObjectKey::new(&pod.namespace, &pod.name))
    }
}

fn target(protocol: u8, port: u16) -> Target {
    match protocol {
        6 => Target::Port(Protocol::Tcp, port),
        17 => Target::Port(Protocol::Udp, port),
        132 => Target::Port(Protocol::Sctp, port),
        1 | 58 => Target::Icmp,
        _ => Target::Other,
    }
}

/// What the policies say of a packet that they dropped.
fn explanation(
    cluster: &Cluster,
    record: &DropRecord,
    pod: Option<&ObjectKey>,
) -> Option<(Direction, explain::DirectionExplanation)> {
    let (source, destination) = record.addresses.map(|(a, b)| (Party::Ip(a), Party::Ip(b)))?;
    let forward = target(record.protocol, record.destination_port);
    // The endpoint is known by its interface: a translated address is not its own.
    let subject = |party: &Party| pod.map_or_else(|| party.clone(), |key| Party::Pod(key.clone()));
    let sides = |from: &Party, to: &Party, target| {
        let explained = cluster.explain(from, to, target);
        [(Direction::Egress, explained.egress), (Direction::Ingress, explained.ingress)]
            .into_iter()
            .filter_map(|(direction, explained)| Some((direction, explained?)))
    };
    match record.reason {
        DropReason::IngressDenied => {
            sides(&source, &subject(&destination), forward).find(|(d, _)| *d == Direction::Ingress)
        }
        DropReason::EgressDenied => {
            sides(&subject(&source), &destination, forward).find(|(d, _)| *d == Direction::Egress)
        }
        DropReason::FlowRevoked => {
            // The flow is judged by the tuple that opened it, which may be the reverse.
            let reverse = target(record.protocol, record.source_port);
            sides(&source, &destination, forward)
                .chain(sides(&destination, &source, reverse))
                .find(|(_, explained)| !explained.verdict.passes())
        }
        _ => None,
    }
}

fn event(
    cluster: &Cluster,
    record: &DropRecord,
    pod: Option<&ObjectKey>,
    time: String,
    policy: Option<(Direction, explain::DirectionExplanation)>,
    policy_changed: bool,
) -> DropEvent {
    let (source, destination) = record.addresses.unzip();
    let has_ports = matches!(record.protocol, 6 | 17 | 132) && record.addresses.is_some();
    let own = |direction| pod.filter(|_| record.direction == direction);
    let end = |own: Option<&ObjectKey>, address: Option<IpAddr>, port| {
        let by_address = || address.and_then(|a| Some(&cluster.identities(a).first()?.key));
        End { pod: own.or_else(by_address).map(name), address, port: has_ports.then_some(port) }
    };
    DropEvent {
        time,
        reason: record.reason.name().to_owned(),
        direction: word(record.direction),
        ifindex: record.ifindex,
        source: end(own(Direction::Egress), source, record.source_port),
        destination: end(own(Direction::Ingress), destination, record.destination_port),
        protocol: match (record.addresses, record.protocol) {
            (None, _) => format!("ether {:#06x}", record.ether_type),
            (_, 6) => "tcp".to_owned(),
            (_, 17) => "udp".to_owned(),
            (_, 132) => "sctp".to_owned(),
            (_, 1 | 58) => "icmp".to_owned(),
            (_, other) => other.to_string(),
        },
        missed: record.missed,
        policy_direction: policy.as_ref().map(|(direction, _)| word(*direction)),
        policy: policy.map(|(_, explained)| convert(explained)),
        policy_changed,
    }
}

fn word(direction: Direction) -> String {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
    .to_owned()
}

fn name(key: &ObjectKey) -> ObjectName {
    ObjectName { namespace: key.namespace.clone(), name: key.name.clone() }
}

fn convert(explained: explain::DirectionExplanation) -> DirectionExplanation {
    DirectionExplanation {
        subject: name(&explained.subject),
        peer: explained.peer,
        verdict: match explained.verdict {
            Verdict::NotIsolated => status::Verdict::NotIsolated,
            Verdict::Allowed => status::Verdict::Allowed,
            Verdict::Denied => status::Verdict::Denied,
            Verdict::Unknown => status::Verdict::Unknown,
        },
        isolated_by: explained.isolated_by.iter().map(name).collect(),
        allowed_by: explained
            .allowed_by
            .iter()
            .map(|rule| RuleName { policy: name(&rule.policy), rule: rule.rule })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::engine::Message;
    use crate::engine::tests::{Running, attachment};

    fn record(reason: DropReason, direction: Direction, ends: [&str; 2], ports: [u16; 2]) -> DropRecord {
        DropRecord {
            ifindex: attachment(5, None).host_ifindex,
            direction,
            reason,
            addresses: Some((ends[0].parse().unwrap(), ends[1].parse().unwrap())),
            protocol: 6,
            source_port: ports[0],
            destination_port: ports[1],
            ether_type: 0x0800,
            missed: 0,
            generation: 1,
        }
    }

    #[tokio::test]
    async fn both_ends_and_the_policies_that_decided_are_named() {
        let engine = Running::ready(Duration::from_millis(30)).await;
        let local = attachment(5, Some(("web", "u1")));
        let own = local.addresses[0].to_string();
        engine.handle.ask(|reply| Message::Put(Box::new(local), reply)).await.unwrap().unwrap();
        let policy = |name: &str, spec| {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                   "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
        };
        engine.batch(&[
            json!({"apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": "n2"},
                   "metadata": {"name": "job", "namespace": "default", "uid": "u9"},
                   "status": {"podIPs": [{"ip": "10.1.7.7"}]}}),
            policy("in", json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]})),
            policy("out", json!({"podSelector": {}, "policyTypes": ["Egress"]})),
        ]);
        let far = "10.1.7.7";
        let mut other = record(DropReason::SpoofedAddress, Direction::Egress, ["1.2.3.4", far], [1, 2]);
        let mut gone = record(DropReason::IngressDenied, Direction::Ingress, ["1.2.3.4", "5.6.7.8"], [1, 2]);
        gone.ifindex = 77;
        (other.protocol, other.missed) = (58, 3);
        let records = vec![
            record(DropReason::IngressDenied, Direction::Ingress, [far, &own], [4000, 81]),
            // Sent as another address by the host's NAT: the interface says whose it is.
            record(DropReason::EgressDenied, Direction::Egress, ["192.0.2.1", "192.0.2.9"], [4000, 443]),
            // A reply to what the rules no longer allow.
            record(DropReason::FlowRevoked, Direction::Egress, [&own, far], [81, 4000]),
            DropRecord {
                generation: 0,
                ..record(DropReason::IngressDenied, Direction::Ingress, [far, &own], [1, 80])
            },
            other,
            gone,
        ];
        let events = engine.handle.ask(|reply| Message::Resolve(records, reply)).await.unwrap();
        let who = |end: &End| {
            let name = end.pod.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
            (name, end.port)
        };
        let said: Vec<_> = events
            .iter()
            .map(|e| {
                let policies = e.policy.as_ref().map_or_else(String::new, |p| {
                    let names: Vec<_> = p.isolated_by.iter().map(ToString::to_string).collect();
                    format!("{} {:?} {}", p.subject, p.verdict, names.join(","))
                });
                let (source, destination) = (who(&e.source), who(&e.destination));
                let judged = e.policy_direction.as_deref().unwrap_or("-");
                (e.direction.as_str(), source.0, destination.0, judged, policies, e.policy_changed)
            })
            .collect();
        let web = || "shop/web".to_owned();
        let job = || "default/job".to_owned();
        let none = || "-".to_owned();
        let ingress = || "shop/web Denied shop/in".to_owned();
        assert_eq!(
            said,
            [
                ("ingress", job(), web(), "ingress", ingress(), false),
                ("egress", web(), none(), "egress", "shop/web Denied shop/out".to_owned(), false),
                ("egress", web(), job(), "egress", "shop/web Denied shop/out".to_owned(), false),
                ("ingress", job(), web(), "ingress", "shop/web Allowed shop/in".to_owned(), true),
                ("egress", web(), job(), "-", String::new(), false),
                ("ingress", none(), none(), "-", String::new(), false),
            ]
        );
        assert_eq!((who(&events[0].source).1, who(&events[0].destination).1), (Some(4000), Some(81)));
        assert_eq!((events[4].protocol.as_str(), events[4].source.port, events[4].missed), ("icmp", None, 3));
    }
}
