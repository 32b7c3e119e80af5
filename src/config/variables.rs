//! The one table of variables: names are looked up here, README's table is printed from here.

use std::fmt::Write as _;

/// One variable, as README shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What holds without it, in words; `required` when it must be set.
    pub default: &'static str,
    /// Whether its value may be shown.
    pub kind: Kind,
    /// What it does, in one sentence.
    pub summary: &'static str,
}

/// Whether a variable's value may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It may.
    Plain,
    /// It may not; `<name>_FILE` is accepted too.
    Secret,
}

const fn plain(name: &'static str, default: &'static str, summary: &'static str) -> Variable {
    Variable { name, default, kind: Kind::Plain, summary }
}

const fn secret(name: &'static str, default: &'static str, summary: &'static str) -> Variable {
    Variable { name, default, kind: Kind::Secret, summary }
}

/// Every variable, in README's order.
pub const VARIABLES: &[Variable] = &[
    plain(
        "APP_NAME",
        "the platform's, else myapp-postgres",
        "Name of the application: the location API's, and the cluster's scope.",
    ),
    secret("POSTGRES_SUPERUSER_PASSWORD", "required", "Password of `POSTGRES_USER`."),
    secret("POSTGRES_REPLICATION_PASSWORD", "required", "Password of the role `replicator`."),
    plain("POSTGRES_USER", "postgres", "Name of the superuser."),
    plain("POSTGRES_DB", "postgres", "Database made at bootstrap."),
    plain("HOST_POSTGRES_PORT", "5432", "PostgreSQL's port as others reach it."),
    plain("HOST_PATRONI_API_PORT", "8008", "The REST API's port as others reach it."),
    plain("HOST_ETCD_CLIENT_PORT", "2379", "etcd's client port as others reach it."),
    plain("HOST_ETCD_PEER_PORT", "2380", "etcd's peer port as others reach it."),
    plain("POSTGRES_PORT", "5432", "Port that PostgreSQL binds."),
    plain("PATRONI_API_PORT", "8008", "Port that the REST API binds."),
    plain("ETCD_CLIENT_PORT", "2379", "Port that etcd binds for clients."),
    plain("ETCD_PEER_PORT", "2380", "Port that etcd binds for its peers."),
    plain(
        "SSL_ENABLED",
        "false",
        "`true`: clients must use TLS, and REST is HTTPS (the control plane always is mutual TLS).",
    ),
    secret(
        "SSL_PASSPHRASE",
        "required if `SSL_ENABLED`",
        "All keys derive from it; without one, from the two passwords.",
    ),
    plain(
        "SSL_ALLOW_WEAK_PASSPHRASE",
        "false",
        "Accept a passphrase that is short, common or part of another value.",
    ),
    plain(
        "SSL_CERT_VALIDITY_DAYS",
        "3650",
        "Days that the CA certificates are valid; a node's own live at most 90 and renew themselves.",
    ),
    plain(
        "SSL_EXTRA_SANS",
        "none",
        "More names and addresses for the server certificates, separated by commas.",
    ),
    plain("DISCOVERY", "flux", "Where the list of nodes comes from: `flux`, `dns` or `static`."),
    plain(
        "DISCOVERY_DNS_NAME",
        "required if `dns`",
        "The name whose addresses are the nodes; of one that begins with `_`, the SRV targets (the ports do not count).",
    ),
    plain("DISCOVERY_DNS_SERVER", "the system's", "The name server that is asked, as `ADDRESS:PORT`."),
    plain("DISCOVERY_PEERS", "required if `static`", "The nodes' addresses, separated by commas."),
    plain("FLUX_API_URL", "https://api.runonflux.io", "The location API."),
    plain("FLUX_APP_NAME", "none", "The application's name as the platform tells it."),
    plain("FLUX_NODE_HOST_IP", "none", "This node's address as the platform tells it (a hint)."),
    plain("ADVERTISE_ADDRESS", "found out", "This node's address as others reach it."),
    plain("LISTEN_ADDRESS", "0.0.0.0", "Address that every port is bound to."),
    plain("CLUSTER_SIZE", "the platform's, else 3", "Desired number of nodes."),
    plain("NODE_NAME", "node-<address>", "This member's name."),
    plain("DATA_VOLUME", "/var/lib/postgresql/data", "The directory that persists."),
    plain("PGDATA", "$DATA_VOLUME/pgdata", "The data directory; beneath `DATA_VOLUME`."),
    plain("RUN_DIR", "/run/pgherd", "Sockets, rendered files and TLS files; need not persist."),
    secret(
        "IMPORT_URL",
        "none",
        "A new cluster begins with the roles and the data of this server: `postgres://USER:PASSWORD@HOST/DATABASE`; without a database, all.",
    ),
    plain(
        "STANDBY_HOST",
        "none",
        "A new cluster follows another one: the server, or several with commas, that it is copied from and streams from; the passwords are the same there.",
    ),
    plain("STANDBY_PORT", "5432", "The port of `STANDBY_HOST`."),
    plain("STANDBY_PRIMARY_SLOT_NAME", "none", "A replication slot that exists on `STANDBY_HOST`."),
    plain(
        "STANDBY_APP_NAME",
        "none",
        "`APP_NAME` of the cluster that is or will be followed, if it is pgherd's and has the same secret: its servers are verified, and want this node's certificate.",
    ),
    plain("PG_BINDIR", "the newest installed", "Where `postgres` and `initdb` are."),
    plain("POSTGRES_PARAMETERS", "none", "Lines `name=value` for postgresql.conf."),
    plain("POSTGRES_HBA", "none", "Lines for pg_hba.conf, before pgherd's own."),
    plain("POSTGRES_INITDB_ARGS", "none", "More arguments for initdb."),
    plain(
        "NETWORK",
        "auto",
        "Preset of all timers: `auto` (local if every address is private, else global), `local`, `regional`, `global`.",
    ),
    plain("TTL", "by `NETWORK`: 10 s, 15 s, 20 s", "How long the leader's lease lasts."),
    plain("LOOP_WAIT", "by `NETWORK`: 2 s, 3 s, 3 s", "How often each node looks when nothing wakes it."),
    plain(
        "RETRY_TIMEOUT",
        "by `NETWORK`: 4 s, 6 s, 6 s",
        "How long the store is retried; `LOOP_WAIT + 2 * RETRY_TIMEOUT <= TTL`.",
    ),
    plain(
        "PRUNE_AFTER",
        "by `NETWORK`: 1 min, 5 min, 5 min",
        "How long a node is absent before it is removed.",
    ),
    plain(
        "SYNCHRONOUS_MODE",
        "quorum",
        "`quorum`: a commit is on two nodes before it is acknowledged; `on`: on a chosen standby; `off`.",
    ),
    plain("SYNCHRONOUS_MODE_STRICT", "false", "`true`: without a standby commits wait."),
    plain("SYNCHRONOUS_NODE_COUNT", "1", "How many standbys a commit waits for."),
    plain(
        "MAXIMUM_LAG_ON_FAILOVER",
        "1MB",
        "A replica further behind does not take over (asynchronous mode).",
    ),
    plain(
        "FAILSAFE_MODE",
        "false",
        "`true`: without the store the primary goes on as long as every member promises not to take its place.",
    ),
    plain(
        "RESTAPI_USERNAME",
        "none",
        "User of the REST calls that change something; without one they are taken from members and from this machine only.",
    ),
    secret("RESTAPI_PASSWORD", "none", "Password of `RESTAPI_USERNAME`."),
    plain("TAG_NOFAILOVER", "false", "`true`: this node never becomes the leader."),
    plain(
        "TAG_FAILOVER_PRIORITY",
        "1",
        "Of replicas that have the same, the one with the higher number leads; 0: never.",
    ),
    plain(
        "TAG_NOLOADBALANCE",
        "false",
        "`true`: the health checks for reads (`/replica` and others) answer 503 here.",
    ),
    plain("TAG_CLONEFROM", "false", "`true`: new nodes copy from this replica rather than from the leader."),
    plain("TAG_NOSYNC", "false", "`true`: no commit ever waits for this node."),
    plain(
        "TAG_SYNC_PRIORITY",
        "1",
        "Commits wait for the node with the higher number first; 0: never for this one.",
    ),
    plain(
        "TAG_NOSTREAM",
        "false",
        "`true`: this replica reads the WAL archive only (it needs a `restore_command`).",
    ),
    plain(
        "TAG_REPLICATEFROM",
        "the leader",
        "Name of the member that this replica streams from, while it exists.",
    ),
    plain(
        "TAGS",
        "none",
        "More tags, `name=value`, separated by commas or lines; shown to tools, asked for by `tag_<name>=`.",
    ),
    plain(
        "PROXY_ENABLED",
        "false",
        "`true`: HAProxy runs on this node and leads its ports to the primary and to the replicas.",
    ),
    plain("PROXY_RW_PORT", "5000", "The proxy's port that always leads to the primary."),
    plain(
        "PROXY_RO_PORT",
        "5001",
        "The proxy's port that leads to the replicas, to the primary if there is none.",
    ),
    plain("PROXY_STATS_PORT", "7000", "The proxy's status page."),
    plain("PROXY_SOCKET_DIR", "none", "Directory in which the read-write port is a Unix socket as well."),
    plain("PROXY_MAX_LAG", "16MB", "A replica further behind gets no new readers from the proxy."),
    plain(
        "CALLBACK_ON_START",
        "none",
        "Program run as `<program> on_start <role> <scope>` when PostgreSQL answers.",
    ),
    plain("CALLBACK_ON_STOP", "none", "The same when it has ended."),
    plain("CALLBACK_ON_RESTART", "none", "The same when it answers after a restart that was asked for."),
    plain("CALLBACK_ON_RELOAD", "none", "The same when it has read its configuration again."),
    plain("CALLBACK_ON_ROLE_CHANGE", "none", "The same when it became the primary or ceased to be it."),
    plain(
        "PRE_PROMOTE",
        "none",
        "Program that must succeed before this node is promoted; else it gives the lock back and stands back for a `TTL`.",
    ),
    plain(
        "WATCHDOG_MODE",
        "off",
        "`automatic`: while this node leads, `WATCHDOG_DEVICE` resets the *host* if everything hangs; `required`: without it this node does not lead.",
    ),
    plain("WATCHDOG_DEVICE", "/dev/watchdog", "The device, which must be given to the container."),
    plain(
        "WATCHDOG_SAFETY_MARGIN",
        "1s",
        "How much earlier than the lease the watchdog fires; the orderly stop comes before it by as much as before the lease's end.",
    ),
    plain(
        "RESERVE",
        "64MB",
        "Room that is held back on the volume while there is plenty, for the recovery of a server that has filled it; 0: none.",
    ),
    plain("LOG_FORMAT", "text", "`text` or `json`."),
    plain("LOG_LEVEL", "info", "`error`, `warn`, `info`, `debug` or `trace`."),
    plain("SHUTDOWN_TIMEOUT", "9s", "What an orderly stop may take; Docker kills after 10 s."),
    plain("RESTART_NODE", "true", "`false`: PID 1 ends when `node` ends, instead of starting it again."),
    plain("HOSTINFO_URL", "Flux's own", "For tests: the service that tells a node its address."),
    plain(
        "ECHO_URLS",
        "three public ones",
        "For tests: services that echo the caller's address, separated by commas.",
    ),
];

/// The variable of this name.
pub(super) fn find(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.name == name)
}

/// README's table.
pub fn markdown_table() -> String {
    let mut table = "| Variable | Default | What it does |\n|---|---|---|\n".to_owned();
    for Variable { name, default, kind, summary } in VARIABLES {
        let file = match kind {
            Kind::Plain => String::new(),
            Kind::Secret => format!(" Or `{name}_FILE`."),
        };
        // Writing to a String cannot fail.
        writeln!(table, "| `{name}` | {default} | {summary}{file} |").unwrap_or_default();
    }
    table
}

/// Names that other images use for one of ours.
const ELSEWHERE: &[(&str, &str)] =
    &[("POSTGRES_PASSWORD", "POSTGRES_SUPERUSER_PASSWORD"), ("PATRONI_SCOPE", "APP_NAME")];

/// Nobody has to say so here.
const DECIDED: &str = "nothing: the nodes agree on it by themselves";
/// The way of a parameter of the dynamic configuration.
const DYNAMIC: &str = "pgherd edit-config, where it is a key of the dynamic configuration";

/// Variables of flux-pg-cluster that mean nothing here, and what there is in their place.
pub(super) const PREDECESSORS: &[(&str, &str)] = &[
    ("PATRONI_TTL", "TTL, or NETWORK for all timers"),
    ("PATRONI_LOOP_WAIT", "LOOP_WAIT, or NETWORK for all timers"),
    ("PATRONI_RETRY_TIMEOUT", "RETRY_TIMEOUT, or NETWORK for all timers"),
    ("PATRONI_MAX_LAG", "MAXIMUM_LAG_ON_FAILOVER"),
    ("PATRONI_MASTER_START_TIMEOUT", DYNAMIC),
    ("PATRONI_MASTER_STOP_TIMEOUT", DYNAMIC),
    ("PATRONI_USE_SLOTS", DYNAMIC),
    ("PATRONI_SYNCHRONOUS_MODE", "SYNCHRONOUS_MODE"),
    ("PATRONI_SYNCHRONOUS_MODE_STRICT", "SYNCHRONOUS_MODE_STRICT"),
    ("PATRONI_SYNCHRONOUS_NODE_COUNT", "SYNCHRONOUS_NODE_COUNT"),
    ("PROXY_LISTEN_PORT", "PROXY_RW_PORT"),
    ("PROXY_HEALTH_INTERVAL_SECONDS", "nothing: the proxy is told who leads"),
    ("UPDATE_INTERVAL_SECONDS", "PRUNE_AFTER"),
    ("DESIRED_STATE_STABILITY_CYCLES", "PRUNE_AFTER"),
    ("ALLOW_NEW_CLUSTER_BOOTSTRAP", DECIDED),
    ("ALLOW_ANY_NODE_BOOTSTRAP", DECIDED),
    ("AUTO_BOOTSTRAP_IF_FRESH", DECIDED),
    ("DEAD_CLUSTER_RECOVERY", DECIDED),
    ("ETCD_JOIN_MAX_RETRIES", DECIDED),
    ("ETCD_JOIN_RETRY_DELAY_SECONDS", DECIDED),
    ("ETCD_UNAVAILABLE_RECOVERY_CYCLES", DECIDED),
];

/// The known name that a mistyped one was probably meant to be.
pub(super) fn likely(unknown: &str) -> Option<&'static str> {
    let nearest = |name: &str, secrets_only: Option<Kind>| {
        let ours = VARIABLES
            .iter()
            .filter(|v| secrets_only.is_none_or(|kind| v.kind == kind))
            .map(|v| (v.name, v.name));
        let all = ours.chain(ELSEWHERE.iter().copied());
        let near = all.map(|(spelled, meant)| (distance(name, spelled), tolerance(spelled), meant));
        near.filter(|(d, tolerance, _)| d <= tolerance).min().map(|(_, _, meant)| meant)
    };
    match unknown.strip_suffix("_FILE") {
        Some(stem) => nearest(stem, Some(Kind::Secret)),
        None => nearest(unknown, None),
    }
}

/// Two edits in a long name are a slip; in a short one they are another name (`TZ` is no `TTL`).
fn tolerance(name: &str) -> usize {
    match name.len() {
        0..=4 => 0,
        5..=7 => 1,
        _ => 2,
    }
}

/// Levenshtein's distance. Two neighbours swapped count as two edits.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (above, y) in row.iter().skip(1).zip(b.bytes()) {
            let best = (diagonal + usize::from(x != y)).min(above + 1).min(left + 1);
            diagonal = *above;
            left = best;
            next.push(best);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, expected) in
            [("", "abc", 3), ("abc", "abc", 0), ("abc", "abd", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!((distance(a, b), distance(b, a)), (expected, expected), "{a} {b}");
        }
    }

    #[test]
    fn slips_are_recognised_and_other_names_left_alone() {
        assert_eq!(likely("POSTGRES_SUPERUSER_PASWORD"), Some("POSTGRES_SUPERUSER_PASSWORD"));
        assert_eq!(likely("POSTGRES_SUPERUSER_PASWORD_FILE"), Some("POSTGRES_SUPERUSER_PASSWORD"));
        assert_eq!(likely("POSTGRES_PASSWORD"), Some("POSTGRES_SUPERUSER_PASSWORD"));
        assert_eq!(likely("SSL_ENABLE"), Some("SSL_ENABLED"));
        assert_eq!(likely("APPNAME"), Some("APP_NAME"));
        for other in ["TZ", "TERM", "HOME", "PGHOST", "PGPORT", "LANG", "POSTGRES_VERSION", "APP_NAME_FILE"] {
            assert_eq!(likely(other), None, "{other}");
        }
    }

    #[test]
    fn what_takes_a_predecessors_place_exists() {
        for (name, instead) in PREDECESSORS {
            assert!(find(name).is_none(), "{name} is ours");
            let first = instead.split([',', ':', ' ']).next().unwrap();
            assert!(find(first).is_some() || ["nothing", "pgherd"].contains(&first), "{name}: {instead}");
        }
    }

    #[test]
    fn names_stand_once_and_summaries_are_sentences() {
        for (i, v) in VARIABLES.iter().enumerate() {
            assert!(VARIABLES.iter().skip(i + 1).all(|w| w.name != v.name), "{} twice", v.name);
            assert!(v.summary.ends_with('.') && !v.summary.contains('|'), "{}", v.name);
        }
    }

    #[test]
    fn secrets_show_their_file_form_in_the_table() {
        let table = markdown_table();
        assert_eq!(table.lines().count(), VARIABLES.len() + 2);
        assert!(table.contains("Or `SSL_PASSPHRASE_FILE`."));
        assert!(!table.contains("APP_NAME_FILE"));
    }
}
