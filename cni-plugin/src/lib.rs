//! The CNI plugin `fairlead-cni` (CNI specification 1.1.0), and what agent and CLI share with it: the
//! [ledger](ledger::Ledger) of attachments, addresses and interface indexes in the run directory.
//!
//! # Error codes
//!
//! | code | meaning |
//! |---|---|
//! | 1 | cniVersion that the plugin does not speak, or that does not have the command |
//! | 4 | an environment variable is missing or wrong |
//! | 5 | the run directory cannot be read or written |
//! | 6 | standard input is not JSON |
//! | 7 | the network configuration is invalid |
//! | 11 | not now: the agent is away, is not ready, or does not know the pod yet |
//! | 50 | STATUS: the agent is not ready |
//! | 51 | STATUS: the agent's programs are gone, and pods are cut off |
//! | 100 | every address of the node is in use (STATUS and ADD) |
//! | 101 | the attachment exists already, or an interface of that name does |
//! | 102 | the network namespace is not there, is none, or is the node's own |
//! | 103 | the address that was asked for is in use |
//! | 104 | the kernel refused to make or to configure the interface |
//! | 105 | CHECK: what is there is not what ADD left |
//! | 106 | the agent refused the endpoint |
//! | 107 | no interface index is free for the endpoint (4094 to a node; STATUS and ADD) |
//! | 108 | DEL or GC could not remove everything; it can be asked again |
//! | 109 | another plugin, to which this one delegates, could not be run |

pub mod add;
pub mod audit;
pub mod bpf;
pub mod check;
pub mod command;
pub mod config;
pub mod del;
pub mod delegate;
pub mod environment;
pub mod error;
pub mod ledger;
pub mod log;
pub mod netlink;
pub mod netns;
pub mod result;
pub mod status;
pub mod store;
pub mod unlink;
pub mod version;
pub mod wire;

pub use ledger::{Ledger, Reconciled, reconcile, sandbox_lives};
