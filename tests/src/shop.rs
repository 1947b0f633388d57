//! The shop: what its twelve workloads call, told independently of its policies.

use crate::world::{self, Object};
use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Namespace of the shop.
pub const NAMESPACE: &str = "shop";
/// The workload that the world may reach.
pub const DOOR: &str = "frontend";
/// Who calls whom: exactly what has to be open.
pub const CALLS: [(&str, &str); 16] = [
    ("loadgenerator", "frontend"),
    ("frontend", "ad"),
    ("frontend", "cart"),
    ("frontend", "checkout"),
    ("frontend", "currency"),
    ("frontend", "productcatalog"),
    ("frontend", "recommendation"),
    ("frontend", "shipping"),
    ("checkout", "cart"),
    ("checkout", "currency"),
    ("checkout", "email"),
    ("checkout", "payment"),
    ("checkout", "productcatalog"),
    ("checkout", "shipping"),
    ("recommendation", "productcatalog"),
    ("cart", "redis"),
];
/// The call whose permission is taken away.
pub const REVOKED: (&str, &str) = ("frontend", "cart");
/// A call that stays allowed, to see that its connection stays open.
pub const KEPT: (&str, &str) = ("frontend", "checkout");

/// The policies without the egress rule that allows [`REVOKED`].
///
/// # Errors
/// When they are not as this module knows them.
pub fn without_revoked(policies: &[Object]) -> Result<Vec<Object>> {
    let (client, server) = REVOKED;
    let mut policies = policies.to_vec();
    let policy = policies.iter_mut().find(|p| p["metadata"]["name"] == client);
    let rules = policy.and_then(|p| p.pointer_mut("/spec/egress")).and_then(Value::as_array_mut);
    let rules = rules.with_context(|| format!("policy {client} has no egress rules"))?;
    let before = rules.len();
    rules.retain(|rule| rule["to"][0]["podSelector"]["matchLabels"]["app"] != server);
    if rules.len() + 1 != before {
        bail!("policy {client} does not have exactly one egress rule to {server}");
    }
    Ok(policies)
}

/// Splits the shop's objects into policies and the rest.
pub fn split(objects: Vec<Object>) -> (Vec<Object>, Vec<Object>) {
    objects.into_iter().partition(|o| world::kind(o) == "NetworkPolicy")
}
