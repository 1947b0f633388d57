//! What `/readyz` and the status tell of the node's network.

/// Whether the agent is ready, and what it knows besides the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// What it waits for; `None` when it is ready.
    pub waiting_for: Option<String>,
    /// Name of the uplink.
    pub uplink: Option<String>,
    /// What is wrong with the node's network.
    pub problems: Vec<String>,
}
