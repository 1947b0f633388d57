//! What the engine says of itself.

use std::collections::BTreeMap;

use fairlead_api::status::Problem;
use fairlead_api::{EndpointCounters, EndpointStatus};
use fairlead_common::maps::SLOTS;
use fairlead_policy::compiler::{self, Instead};
use fairlead_policy::oracle::Direction;
use fairlead_policy::tables::Slot;

use super::{Engine, Snapshot};
use crate::enforcer::Enforcer;

impl<E: Enforcer> Engine<E> {
    /// One endpoint, without counters: it is new.
    pub(super) fn endpoint_status(&self, slot: Slot) -> Option<EndpointStatus> {
        let local = self.endpoints.get(&slot)?;
        let isolation = self.compiler.isolation(slot);
        // A pod that is not known is closed in both directions.
        let unknown = isolation.is_none() && local.attachment.pod.is_some();
        let isolation = isolation.unwrap_or_default();
        Some(EndpointStatus {
            attachment: local.attachment.clone(),
            slot: slot.into(),
            generation: local.generation,
            unlocked: local.unlocked,
            fast_path: self.options.fast_path && !local.attachment.shaped,
            ingress_isolated: isolation.ingress || unknown,
            egress_isolated: isolation.egress || unknown,
            counters: EndpointCounters::default(),
        })
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut problems = self.index.problems();
        problems.extend(self.problems.values().cloned());
        let mut counters = match self.enforcer.counters() {
            Ok(counters) => counters,
            Err(e) => {
                problems.push(Problem { message: format!("reading counters: {e}"), ..Problem::default() });
                BTreeMap::new()
            }
        };
        let overflow = self.compiler.problems();
        problems.extend(overflow.iter().map(overflow_problem));
        let mut endpoints = Vec::with_capacity(self.endpoints.len());
        for slot in self.endpoints.keys() {
            let Some(mut status) = self.endpoint_status(*slot) else { continue };
            status.counters = counters.remove(&status.attachment.host_ifindex).unwrap_or_default();
            endpoints.push(status);
        }
        let stats = self.compiler.stats();
        let counts = [
            ("namespaces", stats.namespaces),
            ("pods", stats.pods),
            ("policies", stats.policies),
            ("nodes", self.index.node_count()),
            ("endpoints", stats.endpoints),
            ("selectors", stats.selectors),
            ("blocks", stats.blocks),
            ("atoms", stats.atoms),
            ("signatures", stats.signatures),
            ("sets", stats.sets),
            ("classes", stats.classes),
            ("rows", stats.rows),
            ("peers", stats.peers.iter().sum()),
            ("cidrs", stats.cidrs.iter().sum()),
        ];
        let limits = *self.compiler.limits();
        let tables = [
            ("port_sets", stats.sets, limits.sets),
            ("port_classes", stats.classes, limits.classes.into()),
            ("rows", stats.rows, limits.rows),
            ("peers4", stats.peers[0], limits.peers),
            ("peers6", stats.peers[1], limits.peers),
            ("cidrs4", stats.cidrs[0], limits.cidrs),
            ("cidrs6", stats.cidrs[1], limits.cidrs),
            ("endpoints", stats.endpoints, SLOTS - 2),
        ];
        Snapshot {
            serial: self.serial,
            commits: self.commits,
            failures: self.failures,
            waiting: self.waiting.len() as u64,
            counts: counts.into_iter().map(|(name, n)| (name.to_owned(), n as u64)).collect(),
            tables: tables.map(|(name, used, limit)| (name, used as u64, limit.into())).into(),
            overflow,
            work: self.compiler.work(),
            endpoints,
            others: counters,
            addresses: self.own.iter().flatten().copied().collect(),
            problems,
        }
    }
}

/// What does not fit, for people.
pub(super) fn overflow_problem(problem: &compiler::Problem) -> Problem {
    let direction = match problem.direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let policies: Vec<String> = problem.policies.iter().map(ToString::to_string).collect();
    let instead = match problem.instead {
        Instead::Older => "the rules before them stay in force",
        Instead::Closed => "it is closed",
        Instead::Part => "some peers that came since are denied",
    };
    Problem {
        object: Some(format!("Pod {}", problem.pod)),
        message: format!(
            "{direction}: the rules of {} need more {} than the tables hold; {instead}",
            policies.join(", "),
            problem.resource
        ),
        ..Problem::default()
    }
}
