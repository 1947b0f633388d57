//! Metrics in Prometheus' text format. Their list is `docs/metrics.md`.

use std::fmt::Write as _;

use fairlead_api::{EndpointCounters, EndpointStatus};
use fairlead_policy::compiler::Instead;
use fairlead_policy::oracle::Direction;

use crate::drops::Counts;
use crate::engine::Snapshot;
use crate::readiness::Readiness;

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP fairlead_{name} {help}\n# TYPE fairlead_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let _ = write!(self.0, "fairlead_{name}");
        for (i, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if i == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

fn labels(endpoint: &EndpointStatus) -> [(&str, &str); 3] {
    let (namespace, pod) = match &endpoint.attachment.pod {
        Some(pod) => (pod.namespace.as_str(), pod.name.as_str()),
        None => ("", ""),
    };
    [("namespace", namespace), ("pod", pod), ("interface", &endpoint.attachment.host_ifname)]
}

fn directions(counters: &EndpointCounters) -> [(&'static str, &fairlead_api::DirectionCounters); 2] {
    [("ingress", &counters.ingress), ("egress", &counters.egress)]
}

/// All metrics.
pub fn text(snapshot: &Snapshot, readiness: &Readiness, drops: Counts) -> String {
    let mut text = Text(String::new());
    text.family("build_info", "gauge", "Version of the agent.");
    text.sample("build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.single(
        "ready",
        "gauge",
        "1 when the state of the world is known and enforced.",
        u64::from(readiness.waiting_for.is_none()),
    );
    text.single("policy_serial", "gauge", "Number of the last step of policy in force.", snapshot.serial);
    text.single("policy_steps_total", "counter", "Steps of policy made.", snapshot.commits);
    text.single(
        "policy_failures_total",
        "counter",
        "Steps of policy that could not be put in force at once.",
        snapshot.failures,
    );
    text.single("adds_waiting", "gauge", "ADDs that wait for their pod's object.", snapshot.waiting);
    text.single(
        "problems",
        "gauge",
        "Things that the agent was told and cannot do as told.",
        (snapshot.problems.len() + readiness.problems.len()) as u64,
    );
    text.family("objects", "gauge", "Objects known, and what their policy needs in the tables.");
    for (kind, n) in &snapshot.counts {
        text.sample("objects", &[("kind", kind)], *n);
    }
    text.family("table_entries", "gauge", "Elements of a table that policy needs.");
    for (table, used, _) in &snapshot.tables {
        text.sample("table_entries", &[("table", table)], *used);
    }
    text.family("table_limit", "gauge", "Most elements of a table that policy may need.");
    for (table, _, limit) in &snapshot.tables {
        text.sample("table_limit", &[("table", table)], *limit);
    }
    text.family("policy_work_total", "counter", "Things touched by compiling policy.");
    let work = snapshot.work;
    for (kind, n) in [
        ("selectors", work.evaluations),
        ("endpoints", work.endpoints),
        ("signatures", work.signatures),
        ("addresses", work.addresses),
        ("rows", work.rows),
    ] {
        text.sample("policy_work_total", &[("kind", kind)], n);
    }
    let endpoints = &snapshot.endpoints;
    text.family("endpoint_overflow", "gauge", "1 where the endpoint's rules do not fit into the tables.");
    for problem in &snapshot.overflow {
        let slot = u32::from(problem.slot);
        let Some(endpoint) = endpoints.iter().find(|endpoint| endpoint.slot == slot) else { continue };
        let [a, b, c] = labels(endpoint);
        let direction = match problem.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        let instead = match problem.instead {
            Instead::Older => "older",
            Instead::Closed => "closed",
            Instead::Part => "part",
        };
        let all = [a, b, c, ("direction", direction), ("instead", instead)];
        text.sample("endpoint_overflow", &all, 1);
    }
    text.family("endpoint_unlocked", "gauge", "1 when the endpoint's policy is in place.");
    for endpoint in endpoints {
        text.sample("endpoint_unlocked", &labels(endpoint), u64::from(endpoint.unlocked));
    }
    text.family("endpoint_isolated", "gauge", "1 when a policy selects the endpoint in this direction.");
    for endpoint in endpoints {
        let [a, b, c] = labels(endpoint);
        let both = [("ingress", endpoint.ingress_isolated), ("egress", endpoint.egress_isolated)];
        for (direction, isolated) in both {
            text.sample("endpoint_isolated", &[a, b, c, ("direction", direction)], u64::from(isolated));
        }
    }
    text.family("endpoint_packets_total", "counter", "Packets that passed, from the pod's point of view.");
    for endpoint in endpoints {
        let [a, b, c] = labels(endpoint);
        for (direction, counters) in directions(&endpoint.counters) {
            text.sample("endpoint_packets_total", &[a, b, c, ("direction", direction)], counters.packets);
        }
    }
    text.family("endpoint_bytes_total", "counter", "Bytes that passed, link layer included.");
    for endpoint in endpoints {
        let [a, b, c] = labels(endpoint);
        for (direction, counters) in directions(&endpoint.counters) {
            text.sample("endpoint_bytes_total", &[a, b, c, ("direction", direction)], counters.bytes);
        }
    }
    text.family("endpoint_drops_total", "counter", "Packets dropped, by reason.");
    for endpoint in endpoints {
        let [a, b, c] = labels(endpoint);
        for (direction, counters) in directions(&endpoint.counters) {
            for (reason, n) in &counters.drops {
                let all = [a, b, c, ("direction", direction), ("reason", reason)];
                text.sample("endpoint_drops_total", &all, *n);
            }
        }
    }
    text.family("other_drops_total", "counter", "Packets dropped at interfaces that are no endpoint's.");
    for (ifindex, counters) in &snapshot.others {
        let ifindex = ifindex.to_string();
        for (direction, counters) in directions(counters) {
            for (reason, n) in &counters.drops {
                let all = [("ifindex", ifindex.as_str()), ("direction", direction), ("reason", reason)];
                text.sample("other_drops_total", &all, *n);
            }
        }
    }
    text.single("drop_events_total", "counter", "Dropped packets seen as events.", drops.seen);
    text.family("drop_events_lost_total", "counter", "Dropped packets that are counted but have no event.");
    for (cause, n) in [("rate_limit", drops.losses.limited), ("buffer_full", drops.losses.full)] {
        text.sample("drop_events_lost_total", &[("cause", cause)], n);
    }
    text.0
}
