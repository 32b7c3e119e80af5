//! Rendered files: the templates of `templates/`, embedded, and the values each of them needs.
//!
//! Invariant: a variable that a template names and its context lacks is an error, never an empty string; and every
//! value that reaches a quoted place goes through a filter that quotes it. What is absent: writing the result to disk
//! (owner and mode are the caller's business), and any decision about what the values should be.

use std::collections::BTreeMap;
use std::net::IpAddr;

use camino::Utf8Path;
use serde::Serialize;

/// The templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Template {
    /// etcd's arguments, one flag a line: [`EtcdFlags`].
    EtcdFlags,
    /// The server's configuration: [`PostgresqlConf`].
    PostgresqlConf,
    /// The same in agent mode: [`AgentConf`].
    AgentConf,
    /// Who may connect, and how: [`PgHba`].
    PgHba,
    /// The proxy's configuration: [`HaproxyCfg`].
    HaproxyCfg,
    /// What the proxy does with a connection that has to wait: [`HaproxyCfg`].
    HaproxyHold,
}

/// What `templates/postgresql.conf` needs. The file lies outside PGDATA; the server is started with
/// `-D <data_directory> -c config_file=<the rendered file>`.
#[derive(Debug, Clone, Serialize)]
pub struct PostgresqlConf<'a> {
    /// PGDATA.
    pub data_directory: &'a Utf8Path,
    /// The rendered `pg_hba.conf`.
    pub hba_file: &'a Utf8Path,
    /// An ident file (empty is fine; it must exist).
    pub ident_file: &'a Utf8Path,
    /// `LISTEN_ADDRESS`.
    pub listen_addresses: &'a str,
    /// The bound port.
    pub port: u16,
    /// Where the Unix socket is made.
    pub socket_directory: &'a Utf8Path,
    /// Where `postgres.crt`, `postgres.key` and `service-ca.crt` are.
    pub tls_dir: &'a Utf8Path,
    /// This member's name.
    pub cluster_name: &'a str,
    /// What a slot may keep of the WAL: by the size of the volume.
    pub max_slot_wal_keep_size: &'a str,
    /// `POSTGRES_PARAMETERS`; a name that the cluster owns ([`CLUSTER_OWNED`]) is refused by `config` and, should one
    /// get here, overridden by the lines below it.
    pub parameters: &'a BTreeMap<String, String>,
    /// What must be equal on every member.
    pub shared: &'a BTreeMap<String, String>,
    /// The upstream's connection string, unquoted; `""` when there is nobody to follow.
    pub primary_conninfo: &'a str,
    /// The slot on the upstream; `""` for none.
    pub primary_slot_name: &'a str,
    /// Unquoted value of `synchronous_standby_names`.
    pub synchronous_standby_names: &'a str,
}

/// What `templates/postgresql.agent.conf` needs.
#[derive(Debug, Clone, Serialize)]
pub struct AgentConf<'a> {
    /// What was there before Patroni and pgherd, or what the administrator has named in its place.
    pub base: &'a Utf8Path,
    /// The `pg_hba.conf` that we write; none: the server's own.
    pub hba_file: Option<&'a Utf8Path>,
    /// The `pg_ident.conf` that we write; none: the server's own.
    pub ident_file: Option<&'a Utf8Path>,
    /// `postgresql.listen`.
    pub listen_addresses: &'a str,
    /// Its port.
    pub port: u16,
    /// The scope.
    pub cluster_name: &'a str,
    /// What the cluster and this node ask for.
    pub parameters: &'a BTreeMap<String, String>,
    /// What must be equal on every member.
    pub shared: &'a BTreeMap<String, String>,
    /// The upstream's connection string, unquoted; `""` when there is nobody to follow.
    pub primary_conninfo: &'a str,
    /// The slot on the upstream; `""` for none.
    pub primary_slot_name: &'a str,
    /// Unquoted value of `synchronous_standby_names`.
    pub synchronous_standby_names: &'a str,
}

/// Parameters that the cluster owns: a user may not set them.
pub const CLUSTER_OWNED: &[&str] = &[
    "archive_cleanup_command",
    "cluster_name",
    "config_file",
    "data_directory",
    "hba_file",
    "hot_standby",
    "ident_file",
    "listen_addresses",
    "log_destination",
    "log_line_prefix",
    "logging_collector",
    "password_encryption",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
    "ssl",
    "ssl_ca_file",
    "ssl_cert_file",
    "ssl_key_file",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_log_hints",
];

/// What `templates/pg_hba.conf` needs.
#[derive(Debug, Clone, Serialize)]
pub struct PgHba<'a> {
    /// `POSTGRES_HBA`: lines that come first, as they are.
    pub extra: &'a [String],
    /// The cluster's own lines: they stand for every rule but those that pgherd needs for itself.
    pub cluster: Option<&'a [String]>,
    /// The role that pgherd itself logs in as, over the socket.
    pub superuser: &'a str,
    /// The role that standbys stream as.
    pub replication_user: &'a str,
    /// How clients may connect.
    pub clients: Clients,
}

/// How clients may connect over TCP. (Replication is always TLS with a client certificate.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Clients {
    /// With or without TLS.
    TlsOffered,
    /// With TLS only.
    TlsRequired,
    /// Not at all: what was recovered is not safe yet.
    None,
}

/// What `templates/haproxy.cfg` needs.
#[derive(Debug, Clone, Serialize)]
pub struct HaproxyCfg<'a> {
    /// Where the node tells it what to do.
    pub command_socket: &'a Utf8Path,
    /// The rendered [`Template::HaproxyHold`].
    pub hold_script: &'a Utf8Path,
    /// `LISTEN_ADDRESS`, as it stands in a URL ([`url_host`]).
    pub listen_host: &'a str,
    /// Always the primary.
    pub read_write_port: u16,
    /// The replicas.
    pub read_only_port: u16,
    /// The status page.
    pub stats_port: u16,
    /// The read-write port as a Unix socket.
    pub read_write_socket: Option<&'a Utf8Path>,
    /// How long a server may take to accept a connection, in milliseconds.
    pub connect_ms: u64,
    /// How long a connection waits while there is no server for it, in milliseconds.
    pub hold_ms: u64,
}

/// What `templates/etcd.flags` needs.
#[derive(Debug, Clone, Serialize)]
pub struct EtcdFlags<'a> {
    /// The version found, which decides the spelling of some flags.
    pub version: EtcdVersion,
    /// The member name: the node id.
    pub name: &'a str,
    /// `<volume>/etcd`.
    pub data_dir: &'a Utf8Path,
    /// Where `etcd-server.*`, `etcd-peer.*` and `internal-ca.crt` are.
    pub tls_dir: &'a Utf8Path,
    /// `LISTEN_ADDRESS` as it stands in a URL (IPv6 in brackets: [`url_host`]).
    pub listen_host: &'a str,
    /// The address that others reach us by, as it stands in a URL.
    pub advertise_host: &'a str,
    /// Bound port for clients.
    pub client_port: u16,
    /// Bound port for peers.
    pub peer_port: u16,
    /// Advertised port for clients.
    pub advertise_client_port: u16,
    /// Advertised port for peers.
    pub advertise_peer_port: u16,
    /// Where etcd serves its metrics in clear text (a loopback address); `None`: nowhere of its own.
    pub metrics_url: Option<&'a str>,
    /// How the member starts its life; `None` when it has data, where etcd ignores these flags.
    pub initial: Option<EtcdInitial<'a>>,
    /// `--heartbeat-interval`, in milliseconds.
    pub heartbeat_ms: u64,
    /// `--election-timeout`, in milliseconds.
    pub election_ms: u64,
}

/// The first start of an etcd member.
#[derive(Debug, Clone, Serialize)]
pub struct EtcdInitial<'a> {
    /// `name=https://host:port,...`
    pub cluster: &'a str,
    /// Founding, or joining.
    pub state: EtcdState,
    /// `--initial-cluster-token`.
    pub token: &'a str,
}

/// `--initial-cluster-state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EtcdState {
    /// This node founds the cluster (a committed ballot says so).
    New,
    /// This node joins one.
    Existing,
}

/// An etcd version; it decides the spelling of flags. Later than 3.6 is treated as 3.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct EtcdVersion {
    /// 3.
    pub major: u32,
    /// 4, 5, 6.
    pub minor: u32,
    /// The last number: some flags came with a patch release.
    pub patch: u32,
}

impl EtcdVersion {
    /// Finds the version in what `etcd --version` prints (`etcd Version: 3.4.23`).
    pub fn parse(text: &str) -> Option<Self> {
        let version = text.lines().find_map(|line| line.strip_prefix("etcd Version:"))?.trim();
        let mut numbers = version.split(['.', '-', '+']).map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self { major: next()?, minor: next()?, patch: next()? })
    }
}

/// An address as it stands in a URL.
pub fn url_host(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

impl Template {
    /// Every template, for the test that renders them all.
    pub const ALL: [Self; 6] = [
        Self::EtcdFlags,
        Self::PostgresqlConf,
        Self::AgentConf,
        Self::PgHba,
        Self::HaproxyCfg,
        Self::HaproxyHold,
    ];

    /// Its file in `templates/`.
    pub fn name(self) -> &'static str {
        match self {
            Self::EtcdFlags => "etcd.flags",
            Self::PostgresqlConf => "postgresql.conf",
            Self::AgentConf => "postgresql.agent.conf",
            Self::PgHba => "pg_hba.conf",
            Self::HaproxyCfg => "haproxy.cfg",
            Self::HaproxyHold => "haproxy-hold.lua",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::EtcdFlags => include_str!("../templates/etcd.flags"),
            Self::PostgresqlConf => include_str!("../templates/postgresql.conf"),
            Self::AgentConf => include_str!("../templates/postgresql.agent.conf"),
            Self::PgHba => include_str!("../templates/pg_hba.conf"),
            Self::HaproxyCfg => include_str!("../templates/haproxy.cfg"),
            Self::HaproxyHold => include_str!("../templates/haproxy-hold.lua"),
        }
    }
}

/// Renders one template with its context.
///
/// # Errors
/// A variable that the context lacks, or a value that a filter refuses (a line break in a setting).
pub fn render(template: Template, context: &impl Serialize) -> Result<String, Error> {
    render_text(template.name(), template.text(), context)
}

fn render_text(name: &'static str, text: &str, context: &impl Serialize) -> Result<String, Error> {
    let failed = |source| Error::Render { name, source };
    let mut tera = tera::Tera::new();
    tera.autoescape_on(Vec::<&str>::new());
    tera.register_filter("conf", conf);
    tera.register_filter("hba", hba);
    tera.add_raw_template(name, text).map_err(failed)?;
    tera.render(name, &tera::Context::from_serialize(context).map_err(failed)?).map_err(failed)
}

/// A string of postgresql.conf: in single quotes, with quotes and backslashes doubled. A line break would end the
/// setting and begin another, whatever the quotes say.
fn conf(value: &str, _: tera::Kwargs, _: &tera::State<'_>) -> tera::TeraResult<String> {
    one_line(value)?;
    Ok(format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''")))
}

/// A name of pg_hba.conf: in double quotes, which also takes the meaning from words like `all`.
fn hba(value: &str, _: tera::Kwargs, _: &tera::State<'_>) -> tera::TeraResult<String> {
    one_line(value)?;
    Ok(format!("\"{}\"", value.replace('"', "\"\"")))
}

fn one_line(value: &str) -> tera::TeraResult<()> {
    if value.contains(['\n', '\r', '\0']) {
        return Err(tera::Error::message("a value holds a line break or a NUL"));
    }
    Ok(())
}

/// A template that could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Tera's message is in the source.
    #[error("could not render {name}")]
    Render {
        /// The template.
        name: &'static str,
        /// Which variable, in which line.
        #[source]
        source: tera::Error,
    },
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    static NO_PARAMETERS: BTreeMap<String, String> = BTreeMap::new();

    fn server<'a>(parameters: &'a BTreeMap<String, String>, conninfo: &'a str) -> PostgresqlConf<'a> {
        PostgresqlConf {
            data_directory: "/data/pg'data".into(),
            hba_file: "/run/pgherd/pg_hba.conf".into(),
            ident_file: "/run/pgherd/pg_ident.conf".into(),
            listen_addresses: "0.0.0.0",
            port: 5433,
            socket_directory: "/run/pgherd".into(),
            tls_dir: "/run/pgherd/tls".into(),
            cluster_name: "node-203-0-113-7",
            max_slot_wal_keep_size: "4096MB",
            parameters,
            shared: &NO_PARAMETERS,
            primary_conninfo: conninfo,
            primary_slot_name: "node_203_0_113_8",
            synchronous_standby_names: r#"ANY 1 ("a","b")"#,
        }
    }

    fn etcd(minor: u32, patch: u32) -> EtcdFlags<'static> {
        EtcdFlags {
            version: EtcdVersion { major: 3, minor, patch },
            name: "00112233445566ff",
            data_dir: "/data/etcd".into(),
            tls_dir: "/run/pgherd/tls".into(),
            listen_host: "0.0.0.0",
            advertise_host: "203.0.113.7",
            client_port: 2379,
            peer_port: 2380,
            advertise_client_port: 32379,
            advertise_peer_port: 32380,
            metrics_url: Some("http://127.0.0.1:2381"),
            initial: Some(EtcdInitial {
                cluster: "00112233445566ff=https://203.0.113.7:32380",
                state: EtcdState::New,
                token: "t",
            }),
            heartbeat_ms: 250,
            election_ms: 2500,
        }
    }

    fn set(lines: &[&str], of: &str) -> bool {
        lines.iter().all(|line| of.lines().any(|l| l == *line))
    }

    #[test]
    fn user_parameters_come_after_defaults_and_before_what_the_cluster_owns() {
        let parameters = BTreeMap::from([
            ("max_connections".to_owned(), "200".to_owned()),
            ("wal_log_hints".to_owned(), "off".to_owned()),
            ("search_path".to_owned(), r#""$user", it's, a\b %"#.to_owned()),
        ]);
        let conninfo = r"host=x password='p\'w d'";
        let text = render(Template::PostgresqlConf, &server(&parameters, conninfo)).unwrap();
        let expected = [
            "max_connections = '200'",
            r#"search_path = '"$user", it''s, a\\b %'"#,
            r"primary_conninfo = 'host=x password=''p\\''w d'''",
            r#"synchronous_standby_names = 'ANY 1 ("a","b")'"#,
            "data_directory = '/data/pg''data'",
            "ssl_ca_file = '/run/pgherd/tls/service-ca.crt'",
            "port = 5433",
        ];
        assert!(set(&expected, &text), "{text}");
        let last = |name: &str| text.lines().rfind(|l| l.starts_with(name)).unwrap().to_owned();
        assert_eq!(last("wal_log_hints"), "wal_log_hints = on");
        assert_eq!(last("max_connections"), "max_connections = '200'");
        assert_eq!(last("shared_buffers"), "shared_buffers = '128MB'");
    }

    /// A file that differs makes the server reload.
    #[test]
    fn the_same_settings_make_the_same_file() {
        let parameters = (0..20).map(|i| (format!("a.setting_{i}"), String::new())).collect();
        let render = || render(Template::PostgresqlConf, &server(&parameters, "")).unwrap();
        let first = render();
        assert!((0..8).all(|_again| render() == first));
    }

    #[test]
    fn every_owned_parameter_that_the_template_sets_is_refused_to_users() {
        let none = BTreeMap::new();
        let text = render(Template::PostgresqlConf, &server(&none, "")).unwrap();
        let (_, owned) = text.split_once("# --- Owned by the cluster ---").unwrap();
        let names: Vec<&str> = owned.lines().filter_map(|l| Some(l.split_once(" = ")?.0)).collect();
        assert!(names.len() > 15, "{names:?}");
        for name in names {
            assert!(
                CLUSTER_OWNED.contains(&name),
                "{name} can be set by a user and is overridden in silence"
            );
        }
    }

    #[test]
    fn in_agent_mode_what_is_ours_comes_after_what_was_there_and_what_is_asked_for() {
        let parameters = BTreeMap::from([("port".to_owned(), "1".to_owned())]);
        let context = AgentConf {
            base: Utf8Path::new("/data/postgresql.base.conf"),
            hba_file: None,
            ident_file: Some(Utf8Path::new("/data/pg_ident.conf")),
            listen_addresses: "*",
            port: 5433,
            cluster_name: "it's",
            parameters: &parameters,
            shared: &BTreeMap::new(),
            primary_conninfo: "",
            primary_slot_name: "",
            synchronous_standby_names: "",
        };
        let text = render(Template::AgentConf, &context).unwrap();
        let lines: Vec<&str> =
            text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        assert_eq!(lines[0], "include_if_exists '/data/postgresql.base.conf'");
        assert_eq!(lines.iter().rfind(|line| line.starts_with("port")), Some(&"port = 5433"));
        assert!(!text.contains("hba_file") && text.contains("cluster_name = 'it''s'"), "{text}");
    }

    #[test]
    fn a_line_break_cannot_smuggle_in_a_setting() {
        let parameters = BTreeMap::from([("search_path".to_owned(), "x'\nfsync = off".to_owned())]);
        let error = render(Template::PostgresqlConf, &server(&parameters, "")).unwrap_err();
        assert_eq!(error.to_string(), "could not render postgresql.conf");
    }

    #[test]
    fn clients_without_tls_are_let_in_only_when_tls_is_offered() {
        let extra = ["host app app 10.0.0.0/8 reject".to_owned()];
        let hba = |clients| {
            let context = PgHba {
                extra: &extra,
                cluster: None,
                superuser: "postgres",
                replication_user: "replicator",
                clients,
            };
            render(Template::PgHba, &context).unwrap()
        };
        let words = |text: &str| -> Vec<String> {
            let rules = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
            rules.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        let offered = words(&hba(Clients::TlsOffered));
        let required = words(&hba(Clients::TlsRequired));
        assert_eq!(offered[0], extra[0]);
        assert_eq!(offered.last().unwrap(), "host all all all md5");
        assert_eq!(required.last().unwrap(), "hostnossl all all all reject");
        for rules in [offered, required] {
            let at = |text: &str| rules.iter().position(|r| r == text).unwrap();
            let streams = at(r#"hostssl replication "replicator" all scram-sha-256 clientcert=verify-full"#);
            assert!(streams < at("host replication all all reject"));
            assert!(at(r#"host all "replicator" all reject"#) < rules.len() - 1);
        }
    }

    #[test]
    fn rules_of_the_cluster_cannot_cut_off_what_pgherd_needs_and_are_all_that_there_is_beyond() {
        let lines = ["host all all all reject".to_owned(), "local all all reject".to_owned()];
        let context = PgHba {
            extra: &[],
            cluster: Some(&lines),
            superuser: "boss",
            replication_user: "replicator",
            clients: Clients::TlsRequired,
        };
        let text = render(Template::PgHba, &context).unwrap();
        let rules: Vec<&str> = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
        let at = |start: &str| rules.iter().position(|rule| rule.starts_with(start)).unwrap();
        assert!(at("local      all          \"boss\"") < at("local all all reject"));
        assert!(at("hostssl    replication  \"replicator\"") < at("host all all all reject"));
        assert!(at("hostnossl  all          all") < at("host all all all reject"));
        assert_eq!(rules.last(), Some(&"local all all reject"));
    }

    #[test]
    fn etcd_gets_one_flag_a_line_and_mutual_tls_everywhere() {
        for (minor, patch) in [(4, 23), (5, 9), (5, 33), (6, 1)] {
            let text = render(Template::EtcdFlags, &etcd(minor, patch)).unwrap();
            assert!(text.lines().all(|l| l.starts_with("--") && l.contains('=') && l.trim() == l), "{text}");
            let names: Vec<&str> = text.lines().map(|l| l.split_once('=').unwrap().0).collect();
            assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len(), "twice in {names:?}");
            assert!(set(&["--client-cert-auth=true", "--peer-client-cert-auth=true"], &text));
            assert!(set(&["--initial-cluster-state=new", "--pre-vote=true"], &text));
            assert!(!text.contains("http://0.0.0.0"), "{text}");
        }
    }

    #[test]
    fn flags_are_spelled_as_the_version_found_knows_them() {
        let has = |minor, patch, flag: &str| {
            let text = render(Template::EtcdFlags, &etcd(minor, patch)).unwrap();
            text.lines().any(|l| l.split('=').next() == Some(flag))
        };
        let catch_up = "--experimental-snapshot-catchup-entries";
        assert!(
            !has(4, 23, catch_up) && !has(5, 13, catch_up) && has(5, 14, catch_up) && !has(6, 0, catch_up)
        );
        let skip = "--experimental-peer-skip-client-san-verification";
        assert!(has(4, 23, skip) && has(5, 33, skip) && !has(6, 0, skip));
        assert!(has(6, 0, "--peer-skip-client-san-verification"));
    }

    #[test]
    fn a_member_with_data_gets_no_initial_flags() {
        let flags = EtcdFlags { initial: None, metrics_url: None, ..etcd(4, 23) };
        let text = render(Template::EtcdFlags, &flags).unwrap();
        assert!(!text.contains("--initial-cluster"), "{text}");
        assert!(!text.contains("--listen-metrics-urls"), "{text}");
    }

    #[test]
    fn an_undefined_variable_is_an_error() {
        for template in Template::ALL {
            let error = render(template, &BTreeMap::<String, String>::new()).unwrap_err();
            assert!(error.to_string().contains(template.name()));
        }
    }

    #[test]
    fn etcd_tells_its_version() {
        let text = "etcd Version: 3.4.23\nGit SHA: Not provided (use ./build instead of go build)\n";
        assert_eq!(EtcdVersion::parse(text), Some(EtcdVersion { major: 3, minor: 4, patch: 23 }));
        let candidate = EtcdVersion::parse("etcd Version: 3.6.0-rc.1\n");
        assert_eq!(candidate, Some(EtcdVersion { major: 3, minor: 6, patch: 0 }));
        assert_eq!(EtcdVersion::parse("command not found"), None);
    }

    fn proxy(socket: Option<&Utf8Path>) -> HaproxyCfg<'_> {
        HaproxyCfg {
            command_socket: "/run/pgherd/haproxy.sock".into(),
            hold_script: "/run/pgherd/haproxy-hold.lua".into(),
            listen_host: "0.0.0.0",
            read_write_port: 5000,
            read_only_port: 5001,
            stats_port: 7000,
            read_write_socket: socket,
            connect_ms: 300,
            hold_ms: 5000,
        }
    }

    #[test]
    fn the_proxy_listens_where_it_is_told() {
        let text = render(Template::HaproxyCfg, &proxy(Some("/sockets/.s.PGSQL.5432".into()))).unwrap();
        let expected = [
            "    bind 0.0.0.0:5000",
            "    bind unix@/sockets/.s.PGSQL.5432 mode 666",
            "    bind 0.0.0.0:7000",
        ];
        assert!(set(&expected, &text), "{text}");
        assert!(!render(Template::HaproxyCfg, &proxy(None)).unwrap().contains("unix@"));
        let hold = render(Template::HaproxyHold, &proxy(None)).unwrap();
        assert!(hold.starts_with("-- Written by pgherd"), "{hold}");
        for action in ["hold_for_primary", "hold_for_reader"] {
            assert!(text.contains(&format!("lua.{action}\n")) && hold.contains(&format!("\"{action}\"")));
        }
    }
}
