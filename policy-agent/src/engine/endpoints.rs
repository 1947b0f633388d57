//! Local endpoints: from PUT to DELETE.

use std::collections::BTreeSet;
use std::time::Instant;

use fairlead_api::{ApiError, Attachment, EndpointStatus, ErrorCode, PodRef};
use fairlead_common::maps::{ENDPOINT_ADDRESSES, ifindex_usable, slot_of};
use fairlead_policy::model::ObjectKey;
use fairlead_policy::tables::Slot;

use super::{Engine, RETRY, Reply};
use crate::enforcer::{Enforcer, EnforcerError};

type PutReply = Reply<Result<EndpointStatus, ApiError>>;

/// An endpoint that the datapath knows.
pub(super) struct Local {
    pub(super) attachment: Attachment,
    pub(super) generation: u32,
    pub(super) unlocked: bool,
    /// Who waits for it to be unlocked.
    admitted: Vec<PutReply>,
}

/// A PUT whose pod is not known yet.
pub(super) struct Waiting {
    pub(super) attachment: Attachment,
    pub(super) deadline: Instant,
    /// The source was asked for its pod.
    asked: bool,
    reply: PutReply,
}

fn error(code: ErrorCode, message: impl Into<String>) -> ApiError {
    ApiError { code, message: message.into() }
}

fn key(pod: &PodRef) -> ObjectKey {
    ObjectKey::new(&pod.namespace, &pod.name)
}

fn slot(attachment: &Attachment) -> Slot {
    // Slots have 12 bits.
    slot_of(attachment.host_ifindex) as Slot
}

/// What problems with taking an endpoint out are noted under.
fn removal(slot: Slot) -> String {
    format!("endpoint {slot}")
}

fn same_attachment(attachment: &Attachment, container_id: &str, ifname: &str) -> bool {
    attachment.container_id == container_id && attachment.ifname == ifname
}

/// What is wrong with a request by itself.
fn check(attachment: &Attachment) -> Result<(), ApiError> {
    let invalid = |field: &str, message: String| error(ErrorCode::Invalid, format!("{field}: {message}"));
    // The CNI specification, "Parameters": CNI_CONTAINERID.
    let mut id = attachment.container_id.bytes();
    let good_id = id.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && id.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if !good_id {
        return Err(invalid("containerID", format!("{:?} is not one", attachment.container_id)));
    }
    if attachment.ifname.is_empty() || attachment.ifname.len() > 15 || attachment.ifname.contains('/') {
        return Err(invalid("ifname", format!("{:?} is not an interface's name", attachment.ifname)));
    }
    if !ifindex_usable(attachment.host_ifindex) {
        return Err(invalid("hostIfindex", format!("{} has no usable slot", attachment.host_ifindex)));
    }
    if attachment.addresses.is_empty() {
        return Err(invalid("addresses", "are missing".to_owned()));
    }
    let distinct: BTreeSet<_> = attachment.addresses.iter().collect();
    if distinct.len() != attachment.addresses.len() {
        return Err(invalid("addresses", "one stands there twice".to_owned()));
    }
    for ipv6 in [false, true] {
        let count = attachment.addresses.iter().filter(|a| a.is_ipv6() == ipv6).count();
        if count > ENDPOINT_ADDRESSES {
            let message = format!("{count} of one family, at most {ENDPOINT_ADDRESSES} are possible");
            return Err(invalid("addresses", message));
        }
    }
    if attachment.addresses.iter().any(|a| a.is_unspecified() || a.is_loopback() || a.is_multicast()) {
        return Err(invalid("addresses", "one is not a pod's".to_owned()));
    }
    if attachment.mtu < 68 {
        return Err(invalid("mtu", format!("{} is too small", attachment.mtu)));
    }
    Ok(())
}

impl<E: Enforcer> Engine<E> {
    pub(super) fn put(&mut self, attachment: Attachment, reply: PutReply) {
        if let Err(e) = check(&attachment) {
            return reply.send(Err(e));
        }
        let known = self
            .endpoints
            .iter()
            .find(|(_, l)| same_attachment(&l.attachment, &attachment.container_id, &attachment.ifname))
            .map(|(slot, _)| *slot);
        if let Some(slot) = known {
            match self.endpoints.get_mut(&slot) {
                // The same again: the plugin may not have heard the first answer.
                Some(local) if local.attachment == attachment => {
                    if local.unlocked {
                        let status = self.endpoint_status(slot);
                        reply.send(status.ok_or_else(|| error(ErrorCode::Internal, "no such endpoint")));
                    } else {
                        local.admitted.push(reply);
                    }
                    return;
                }
                // Another sandbox interface under the same name: the old one is gone.
                _ => self.forget(slot),
            }
        }
        self.waiting
            .retain(|w| !same_attachment(&w.attachment, &attachment.container_id, &attachment.ifname));
        let deadline = Instant::now() + self.options.add_timeout;
        self.waiting.push(Waiting { attachment, deadline, asked: false, reply });
    }

    pub(super) fn delete(&mut self, container_id: &str, ifname: &str) {
        self.options.restored.retain(|a| !same_attachment(a, container_id, ifname));
        self.problems.remove(&format!("restore {container_id}:{ifname}"));
        let (gone, still) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|w| same_attachment(&w.attachment, container_id, ifname));
        self.waiting = still;
        for Waiting { reply, .. } in gone {
            reply.send(Err(error(ErrorCode::NotFound, "the attachment was deleted meanwhile")));
        }
        let slots: Vec<Slot> = self
            .endpoints
            .iter()
            .filter(|(_, l)| same_attachment(&l.attachment, container_id, ifname))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in slots {
            self.forget(slot);
        }
    }

    pub(super) fn link_gone(&mut self, ifindex: u32) {
        self.options.restored.retain(|a| a.host_ifindex != ifindex);
        // Slots have 12 bits.
        let slot = slot_of(ifindex) as Slot;
        if self.endpoints.get(&slot).is_some_and(|l| l.attachment.host_ifindex == ifindex) {
            self.forget(slot);
        }
    }

    pub(super) fn links(&mut self, there: &BTreeSet<u32>) {
        // The list is older than this message: an endpoint that came in between is looked at again.
        let enforcer = &self.enforcer;
        let is_there =
            |a: &Attachment| there.contains(&a.host_ifindex) || enforcer.interface_exists(a.host_ifindex);
        self.options.restored.retain(is_there);
        let gone: Vec<Slot> =
            self.endpoints.iter().filter(|(_, l)| !is_there(&l.attachment)).map(|(slot, _)| *slot).collect();
        for slot in gone {
            self.forget(slot);
        }
    }

    /// Takes an endpoint out of the datapath first, then out of policy.
    fn forget(&mut self, slot: Slot) {
        let Some(local) = self.endpoints.remove(&slot) else { return };
        self.take_out(slot, local.attachment.host_ifindex);
        self.compiler.remove_endpoint(slot);
        for reply in local.admitted {
            reply.send(Err(error(ErrorCode::NotFound, "the attachment was deleted meanwhile")));
        }
    }

    /// Takes an endpoint out of the datapath, now or with a later step.
    fn take_out(&mut self, slot: Slot, ifindex: u32) {
        let result = self.enforcer.remove(slot, ifindex);
        if result.is_err() {
            self.unremoved.insert(slot, ifindex);
            // Its addresses may be known there still.
            self.addresses_told = false;
            self.retry_at.get_or_insert(Instant::now() + RETRY);
        }
        let problem = result.err().map(|e| format!("removing the endpoint in slot {slot}: {e}"));
        self.note(&removal(slot), problem);
    }

    /// Takes out what the datapath would not let go of before.
    pub(super) fn take_out_rest(&mut self) {
        for (slot, ifindex) in std::mem::take(&mut self.unremoved) {
            self.take_out(slot, ifindex);
        }
    }

    /// Registers the endpoints that were there at the start.
    pub(super) fn restore(&mut self) {
        for attachment in std::mem::take(&mut self.options.restored) {
            let called = format!("{}:{}", attachment.container_id, attachment.ifname);
            let result =
                check(&attachment).and_then(|()| self.register(attachment, Vec::new()).map_err(|(e, _)| e));
            if let Err(e) = result {
                self.note(
                    &format!("restore {called}"),
                    Some(format!(
                        "endpoint {called} of before cannot be taken over and stays without traffic: {e}"
                    )),
                );
            }
        }
    }

    /// Registers those endpoints whose pods are known by now.
    pub(super) fn admit(&mut self) {
        for mut waiting in std::mem::take(&mut self.waiting) {
            if self.missing(&waiting.attachment).is_some() {
                if let (false, Some(wanted), Some(pod)) =
                    (waiting.asked, &self.options.wanted, &waiting.attachment.pod)
                {
                    // Where nobody listens the source has ended, and the agent with it.
                    let _ = wanted.send(key(pod));
                    waiting.asked = true;
                }
                self.waiting.push(waiting);
                continue;
            }
            if let Err((e, replies)) = self.register(waiting.attachment, vec![waiting.reply]) {
                for reply in replies {
                    reply.send(Err(e.clone()));
                }
            }
        }
    }

    /// What an attachment's policy still depends on.
    fn missing(&self, attachment: &Attachment) -> Option<String> {
        if !self.synced || self.own.is_none() {
            return Some("the state of the world is not known yet".to_owned());
        }
        let pod = attachment.pod.as_ref()?;
        let key = key(pod);
        match (self.index.pod_uid(&key).as_deref(), pod.uid.as_deref()) {
            (None, _) => Some(format!("pod {key} is not known")),
            (Some(known), Some(asked)) if !known.is_empty() && !asked.is_empty() && known != asked => {
                Some(format!("pod {key} with UID {asked} is not known, only one with UID {known}"))
            }
            _ if !self.index.has_namespace(&key.namespace) => {
                Some(format!("namespace {} of pod {key} is not known", key.namespace))
            }
            _ => None,
        }
    }

    fn register(
        &mut self,
        attachment: Attachment,
        admitted: Vec<PutReply>,
    ) -> Result<(), (ApiError, Vec<PutReply>)> {
        self.inbox.pulse.beat();
        let slot = slot(&attachment);
        if self.endpoints.contains_key(&slot) {
            let message = format!("slot {slot} of interface index {} is taken", attachment.host_ifindex);
            return Err((error(ErrorCode::SlotTaken, message), admitted));
        }
        let holder = self.endpoints.values().find_map(|l| {
            Some((l, l.attachment.addresses.iter().find(|a| attachment.addresses.contains(a))?))
        });
        if let Some((local, address)) = holder {
            let message = format!(
                "addresses: {address} belongs to {}:{}",
                local.attachment.container_id, local.attachment.ifname
            );
            return Err((error(ErrorCode::Invalid, message), admitted));
        }
        match self.enforcer.register(&attachment) {
            Ok(generation) => {
                // The slot is this one's now.
                if self.unremoved.remove(&slot).is_some() {
                    self.note(&removal(slot), None);
                }
                let pod = attachment.pod.as_ref().map(key);
                self.compiler.set_endpoint(slot, pod, attachment.addresses.clone());
                self.endpoints.insert(slot, Local { attachment, generation, unlocked: false, admitted });
                Ok(())
            }
            Err(e) => {
                let code = match e {
                    EnforcerError::Taken(_) => ErrorCode::SlotTaken,
                    EnforcerError::Interface(_) => ErrorCode::Interface,
                    EnforcerError::Invalid(_) => ErrorCode::Invalid,
                    EnforcerError::Kernel(_) => ErrorCode::Internal,
                };
                // Half of it may be in the kernel.
                self.take_out(slot, attachment.host_ifindex);
                Err((error(code, e.to_string()), admitted))
            }
        }
    }

    /// After a step was applied: unlocks what it brought.
    pub(super) fn unlock_all(&mut self) {
        let locked: Vec<Slot> =
            self.endpoints.iter().filter(|(_, l)| !l.unlocked).map(|(slot, _)| *slot).collect();
        for slot in locked {
            self.inbox.pulse.beat();
            let topic = format!("unlock {slot}");
            match self.enforcer.unlock(slot) {
                Ok(()) => {
                    self.note(&topic, None);
                    if let Some(local) = self.endpoints.get_mut(&slot) {
                        local.unlocked = true;
                    }
                }
                Err(e) => {
                    self.note(&topic, Some(format!("the endpoint in slot {slot} stays locked: {e}")));
                    self.refuse(slot, &e.to_string());
                }
            }
        }
    }

    /// Answers those whose endpoints are unlocked.
    pub(super) fn answer_admitted(&mut self) {
        let answered: Vec<Slot> = self
            .endpoints
            .iter()
            .filter(|(_, l)| l.unlocked && !l.admitted.is_empty())
            .map(|(slot, _)| *slot)
            .collect();
        for slot in answered {
            let status = self.endpoint_status(slot);
            let replies = self.endpoints.get_mut(&slot).map(|l| std::mem::take(&mut l.admitted));
            for reply in replies.into_iter().flatten() {
                let status = status.clone();
                reply.send(status.ok_or_else(|| error(ErrorCode::Internal, "no such endpoint")));
            }
        }
    }

    /// Undoes what this step would have brought.
    pub(super) fn refuse_admitted(&mut self, message: &str) {
        let refused: Vec<Slot> =
            self.endpoints.iter().filter(|(_, l)| !l.admitted.is_empty()).map(|(slot, _)| *slot).collect();
        for slot in refused {
            self.refuse(slot, message);
        }
    }

    fn refuse(&mut self, slot: Slot, message: &str) {
        let replies =
            self.endpoints.get_mut(&slot).map(|l| std::mem::take(&mut l.admitted)).unwrap_or_default();
        if replies.is_empty() {
            // Nobody undoes it: it was there before.
            return;
        }
        for reply in replies {
            reply.send(Err(error(ErrorCode::Internal, message)));
        }
        self.forget(slot);
    }

    /// Answers those who have waited long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        let (over, still): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|w| w.deadline <= now);
        self.waiting = still;
        for waiting in over {
            let missing = self.missing(&waiting.attachment).unwrap_or_else(|| "not in force yet".to_owned());
            let message = format!("{missing}, after waiting {} ms", self.options.add_timeout.as_millis());
            waiting.reply.send(Err(error(ErrorCode::TryAgain, message)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use std::path::PathBuf;
    use std::time::Duration;

    use fairlead_api::EndpointCounters;
    use fairlead_policy::compiler::{Compiler, Limits};
    use fairlead_policy::tables::Delta;

    use super::super::{Options, channel};
    use super::*;

    /// Interfaces that exist and nothing else.
    struct Kernel(BTreeSet<u32>);

    impl Enforcer for Kernel {
        fn register(&mut self, _: &Attachment) -> Result<u32, EnforcerError> {
            Ok(1)
        }
        fn unlock(&mut self, _: Slot) -> Result<(), EnforcerError> {
            Ok(())
        }
        fn remove(&mut self, _: Slot, _: u32) -> Result<(), EnforcerError> {
            Ok(())
        }
        fn apply(&mut self, _: &Delta) -> Result<(), EnforcerError> {
            Ok(())
        }
        fn settled(&mut self) -> Result<Option<u64>, EnforcerError> {
            Ok(None)
        }
        fn set_addresses(&mut self, _: &BTreeSet<IpAddr>, _: &BTreeSet<IpAddr>) -> Result<(), EnforcerError> {
            Ok(())
        }
        fn set_nodes(&mut self, _: &fairlead_policy::model::NodeChanges) -> Result<(), EnforcerError> {
            Ok(())
        }
        fn set_exits(&mut self, _: &fairlead_datapath::Exits) -> Result<(), EnforcerError> {
            Ok(())
        }
        fn attach_uplink(&mut self, _: u32) -> Result<(), EnforcerError> {
            Ok(())
        }
        fn attach_overlay(&mut self, _: u32) -> Result<(), EnforcerError> {
            Ok(())
        }
        fn activate(&mut self) -> Result<(), EnforcerError> {
            Ok(())
        }
        fn counters(&self) -> Result<BTreeMap<u32, EndpointCounters>, EnforcerError> {
            Ok(BTreeMap::new())
        }
        fn generation(&self) -> u32 {
            1
        }

        fn frozen(&self) -> PathBuf {
            PathBuf::new()
        }
        fn interface_exists(&self, ifindex: u32) -> bool {
            self.0.contains(&ifindex)
        }
    }

    fn attachment(number: u32) -> Attachment {
        serde_json::from_value(serde_json::json!({
            "network": "fairlead", "containerID": format!("c{number}"), "ifname": "eth0",
            "netns": "/run/netns/x", "hostIfname": format!("fl{number}"), "hostIfindex": 0x10000 + number,
            "hostMac": "02:00:00:00:00:01", "podMac": "02:00:00:00:00:02",
            "addresses": [format!("10.0.1.{number}")], "mtu": 1500, "shaped": false,
        }))
        .unwrap()
    }

    #[test]
    fn an_endpoint_younger_than_the_list_of_links_stays() {
        let options = Options {
            node_name: "a".to_owned(),
            add_timeout: Duration::from_secs(1),
            fast_path: true,
            restored: (2..5).map(attachment).collect(),
            wanted: None,
        };
        // 2 is in the list, 3 came after it was made, 4 is gone.
        let kernel = Kernel(BTreeSet::from([0x10002, 0x10003]));
        let (_handle, inbox) = channel();
        let (mut engine, _published) = Engine::new(kernel, Compiler::new(Limits::default()), options, inbox);
        engine.restore();
        assert_eq!(engine.endpoints.keys().copied().collect::<Vec<_>>(), [2, 3, 4]);
        engine.links(&BTreeSet::from([1, 0x10002]));
        assert_eq!(engine.endpoints.keys().copied().collect::<Vec<_>>(), [2, 3]);
    }
}
