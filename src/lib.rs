//! pgherd: N copies of one binary become one highly available PostgreSQL cluster.
//!
//! The map, in reading order and from the bottom up. A module imports only from layers below its own, and two
//! modules of one layer never import each other (`tests/tidy.rs` holds this).
//!
//! | layer | modules | what they are |
//! |---|---|---|
//! | 0 | [`types`], [`clock`] | vocabulary |
//! | 1 | [`log`], [`tls`], [`templates`] | tools: one log that never blocks, keys and certificates, rendered files |
//! | 2 | [`process`], [`peer`], [`dcs`] | the outside: children, other nodes, the coordination store |
//! | 3 | [`supervisor`], [`discovery`], [`record`] | running services, who may exist, what this volume remembers |
//! | 4 | [`postgres`] | one PostgreSQL instance, without any policy |
//! | 5 | [`etcd`], [`ha`] | the two deciding rooms: membership and high availability |
//! | 6 | [`api`], [`proxy`] | REST, metrics, node-to-node calls; the ports that lead to the right server |
//! | 7 | [`config`] | the only reader of the environment |
//! | 8 | [`node`] | the composition root |
//! | 9 | [`init`] | PID 1 |
//! | 10 | [`cli`] | the commands a person types |

pub mod types;

pub mod clock;

pub mod log;
pub mod templates;
pub mod tls;

pub mod dcs;
pub mod peer;
pub mod process;

pub mod discovery;
pub mod record;
pub mod supervisor;

pub mod postgres;

pub mod etcd;
pub mod ha;

pub mod api;
pub mod proxy;

pub mod config;

pub mod node;

pub mod cli;
pub mod init;
