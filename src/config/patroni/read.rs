//! From the raw configuration to [`Agent`], one section after the other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use camino::Utf8PathBuf;
use secrecy::SecretString;
use serde_json::{Map, Value};

use super::headers::headers;
use super::logging::log;
use super::section::Reader;
use super::{Agent, Api, ApiTls, Bootstrap, Calls, Etcd, HostPort, Postgres, VerifyClient};
use crate::api::access::{Access, Basic, Certificate, Demands, Members, Places};
use crate::ha::callbacks::{Event, Program, Programs};
use crate::ha::remote::Remote;
use crate::ha::watchdog::{Guard, Margin, Need};
use crate::postgres::method::{Method, OldData, ReplicaMethod, Source, Told};
use crate::postgres::origin::{Origin, Recovery};
use crate::postgres::settings::{Owner, is_owned, is_shared};
use crate::postgres::{Local, Login};
use crate::process::{WatchdogDevice, WatchdogDriver};
use crate::types::NodeName;

/// Patroni's own default.
const NAMESPACE: &str = "service";
/// Patroni's own default of `watchdog.safety_margin`.
const SAFETY_MARGIN: Duration = Duration::from_secs(5);
/// What libpq is told of a role beyond its name and password.
const LINK_OPTIONS: &[&str] = &[
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "sslnegotiation",
    "gssencmode",
    "channel_binding",
];
/// Options that initdb gets from elsewhere, and that Patroni refuses too.
const INITDB_OWNED: &[&str] = &["pgdata", "D", "pwfile", "pwprompt", "W", "username", "U", "version", "V"];

/// Options that pg_basebackup gets from elsewhere, or that do not go with a copy that is to be a data directory.
const BASEBACKUP_OWNED: &[&str] = &[
    "compress",
    "Z",
    "gzip",
    "z",
    "target",
    "t",
    "pgdata",
    "D",
    "format",
    "F",
    "wal-method",
    "X",
    "dbname",
    "d",
    "host",
    "h",
    "port",
    "p",
    "username",
    "U",
    "password",
    "W",
    "no-password",
    "w",
    "version",
    "V",
];

/// All of it; none when something is missing without which nothing can be said.
pub(super) fn agent(r: &mut Reader) -> Option<Agent> {
    let name = r.required("name");
    let scope = r.required("scope");
    let namespace = r.text("namespace").unwrap_or_else(|| NAMESPACE.to_owned());
    let api = api(r);
    let etcd = etcd(r);
    let bootstrap = bootstrap(r);
    let postgres = postgres(r);
    let (calls, tags) = (calls(r), r.map("tags"));
    let (watchdog, watchdog_device) = (watchdog(r), watchdog_device(r));
    let log = log(r);
    // Everything has been looked at: now what is missing may end it.
    Some(Agent {
        name: NodeName(name?),
        scope: scope?,
        namespace,
        api: api?,
        calls,
        etcd: etcd?,
        bootstrap,
        postgres: postgres?,
        tags,
        watchdog,
        watchdog_device,
        log,
        search_path: String::new(),
    })
}

fn api(r: &mut Reader) -> Option<Api> {
    let listen = address(r, "restapi.listen", listen_address);
    let connect = address(r, "restapi.connect_address", connect_address);
    let certificate = path(r, "restapi.certfile");
    let key = path(r, "restapi.keyfile");
    let ca = path(r, "restapi.cafile");
    let clients = r.parsed("restapi.verify_client", |text| match text.to_ascii_lowercase().as_str() {
        // YAML reads `off` and `no` as false.
        "none" | "off" => Ok(VerifyClient::Never),
        "optional" => Ok(VerifyClient::ForChanges),
        "required" => Ok(VerifyClient::Always),
        _ => Err("none, optional or required".to_owned()),
    });
    let clients = clients.unwrap_or_default();
    if clients != VerifyClient::Never && (ca.is_none() || certificate.is_none()) {
        r.wrong("restapi.verify_client", "needs restapi.certfile and restapi.cafile");
    }
    let tls = certificate.map(|certificate| ApiTls {
        key: key.unwrap_or_else(|| certificate.clone()),
        certificate,
        ca,
        clients,
    });
    let (access, headers) = (access(r, clients), headers(r, tls.is_some()));
    Some(Api { listen: listen?, connect: connect?, tls, access, headers })
}

fn access(r: &mut Reader, clients: VerifyClient) -> Access {
    let user = r.text("restapi.authentication.username");
    let password = r.secret("restapi.authentication.password");
    let basic = match (user, password) {
        (Some(user), Some(password)) => Some(Basic { user, password }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            r.wrong("restapi.authentication", "expected both username and password");
            None
        }
    };
    let (networks, hosts) = places(r);
    let members = if r.flag("restapi.allowlist_include_members").unwrap_or(false) {
        Members::Admitted
    } else {
        Members::Unknown
    };
    let limited = !networks.is_empty() || !hosts.is_empty() || members == Members::Admitted;
    let certificate = match clients {
        VerifyClient::Never => Certificate::NotNeeded,
        VerifyClient::ForChanges | VerifyClient::Always => Certificate::Required,
    };
    let from = limited.then_some(Places { networks, hosts, members });
    if basic.is_none() && from.is_none() && certificate == Certificate::NotNeeded {
        r.warn(
            "restapi",
            "whoever reaches the API may change the cluster, as with Patroni: set `authentication` or `allowlist`",
        );
    }
    Access { basic, demands: Some(Demands { from, certificate }) }
}

fn places(r: &mut Reader) -> (Vec<(IpAddr, u8)>, Vec<String>) {
    const PATH: &str = "restapi.allowlist";
    let (mut networks, mut hosts) = (Vec::new(), Vec::new());
    for text in r.list(PATH) {
        match network(&text) {
            Some(network) => networks.push(network),
            None if is_host_name(&text) => hosts.push(text),
            None => r.wrong(
                PATH,
                format_args!(
                    "{text:?}; expected an address, a network such as 192.0.2.0/24 or a host's name"
                ),
            ),
        }
    }
    (networks, hosts)
}

/// What only looks like an address (`10.0.0.256`) is none.
fn is_host_name(text: &str) -> bool {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    text.chars().all(letters) && text.chars().any(|c| c.is_ascii_alphabetic())
}

fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let bits = if bits.is_empty() { longest } else { bits.parse().ok()? };
    (bits <= longest).then_some((address, bits))
}

fn calls(r: &mut Reader) -> Calls {
    let certificate = pair(r, "ctl.certfile", "ctl.keyfile");
    let ca = path(r, "ctl.cacert");
    let unverified = r.flag("ctl.insecure").unwrap_or(false);
    Calls { ca: ca.filter(|_| !unverified), certificate }
}

fn etcd(r: &mut Reader) -> Option<Etcd> {
    let protocol = r.parsed("etcd3.protocol", |text| match text {
        "http" | "https" => Ok(text.to_owned()),
        _ => Err("http or https".to_owned()),
    });
    let protocol = protocol.unwrap_or_else(|| "http".to_owned());
    let mut endpoints = Vec::new();
    if let Some(url) = r.text("etcd3.url") {
        endpoints.push(url.trim_end_matches('/').to_owned());
    }
    let listed = r.list("etcd3.hosts");
    let listed = listed.iter().flat_map(|item| item.split(',')).map(|item| item.trim().to_owned());
    let single = r.text("etcd3.host");
    for host in listed.chain(single).collect::<Vec<_>>() {
        match connect_address(&with_port(&host, 2379)) {
            Ok(at) => endpoints.push(format!("{protocol}://{at}")),
            Err(expected) => r.wrong("etcd3.hosts", format_args!("{host:?}; expected {expected}")),
        }
    }
    if endpoints.is_empty() {
        r.wrong("etcd3", "expected `host`, `hosts` or `url`: where etcd is");
    }
    let ca = path(r, "etcd3.cacert");
    if ca.is_none() && endpoints.iter().any(|url| url.starts_with("https")) {
        r.wrong("etcd3.cacert", "is required for https: the system's own authorities are not asked");
    }
    let login = match (r.text("etcd3.username"), r.secret("etcd3.password")) {
        (Some(user), Some(password)) => Some((user, password)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            r.wrong("etcd3", "expected both username and password");
            None
        }
    };
    let certificate = pair(r, "etcd3.cert", "etcd3.key");
    Some(Etcd { endpoints, ca, certificate, login })
}

fn bootstrap(r: &mut Reader) -> Bootstrap {
    let dcs = r.map("bootstrap.dcs");
    for complaint in Remote::of(&Value::Object(dcs.clone())).1 {
        r.wrong("bootstrap.dcs", complaint);
    }
    let origin = r.text("bootstrap.method").filter(|method| method != "initdb");
    let origin = origin.and_then(|name| origin_of(r, name));
    let script = ["bootstrap.post_bootstrap", "bootstrap.post_init"]
        .into_iter()
        .find_map(|path| r.parsed(path, crate::config::parse::words))
        .unwrap_or_default();
    Bootstrap {
        dcs,
        initdb: options(r, "bootstrap.initdb", INITDB_OWNED),
        hba: r.list("bootstrap.pg_hba"),
        origin,
        script,
    }
}

/// The section that `bootstrap.method` names.
fn origin_of(r: &mut Reader, name: String) -> Option<Origin> {
    let section = format!("bootstrap.{name}");
    let at = |key: &str| format!("{section}.{key}");
    let kept = r.flag(&at("keep_existing_recovery_conf")).unwrap_or(false);
    let parameters = r.value(&at("recovery_conf")).is_some().then(|| r.texts(&at("recovery_conf")));
    let silent = r.flag(&at("no_params")).unwrap_or(false);
    r.required(&at("command"))?;
    let mut words = r.parsed(&at("command"), crate::config::parse::words)?.into_iter();
    let own = ["command", "no_params", "keep_existing_recovery_conf", "recovery_conf", "scope", "datadir"];
    let keys = r.map(&section).into_iter().filter(|(key, _)| !own.contains(&key.as_str()));
    let keys = keys.map(|(key, value)| (key, plain(&value))).collect();
    Some(Origin {
        name,
        program: words.next()?,
        args: words.collect(),
        // Patroni leaves out its own two only.
        told: if silent { Told::Keys(keys) } else { Told::Everything(keys) },
        recovery: match (parameters, kept) {
            (Some(parameters), _) => Recovery::By(parameters),
            (None, true) => Recovery::AsItIs,
            (None, false) => Recovery::Local,
        },
    })
}

/// `- data-checksums`, `- encoding: UTF8`.
fn options(r: &mut Reader, path: &str, owned: &[&str]) -> Vec<String> {
    let items = match r.value(path) {
        None => return Vec::new(),
        Some(Value::Array(items)) => items.clone(),
        Some(map @ Value::Object(_)) => vec![map.clone()],
        Some(_) => {
            r.wrong(path, "expected a list of options, such as [data-checksums, encoding: UTF8]");
            return Vec::new();
        }
    };
    let mut args = Vec::new();
    for item in items {
        let options: Vec<(String, Option<String>)> = match &item {
            Value::String(flag) => vec![(flag.clone(), None)],
            Value::Object(map) => {
                map.iter().map(|(name, value)| (name.clone(), Some(plain(value)))).collect()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                r.wrong(path, "expected names of options, or a name and a value");
                continue;
            }
        };
        for (name, value) in options {
            if owned.contains(&name.as_str()) {
                r.wrong(
                    path,
                    format_args!("{name} is not for this list: it comes from elsewhere in the file"),
                );
                continue;
            }
            args.push(value.map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}")));
        }
    }
    args
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn postgres(r: &mut Reader) -> Option<Postgres> {
    let listen = address(r, "postgresql.listen", listen_address);
    let connect = address(r, "postgresql.connect_address", connect_address);
    let data_dir = path(r, "postgresql.data_dir");
    if data_dir.is_none() && r.value("postgresql.data_dir").is_none() {
        r.wrong("postgresql.data_dir", "is required");
    }
    let superuser = login(r, "superuser");
    let replication = login(r, "replication");
    let rewind = r.value("postgresql.authentication.rewind").is_some().then(|| login(r, "rewind"));
    let parameters = parameters(r);
    let listen = listen?;
    let local = local(r, &listen, &parameters);
    let data_dir = data_dir?;
    let named = r.list("postgresql.create_replica_methods");
    let methods = methods(r, &named);
    let proxy = r.parsed("postgresql.proxy_address", connect_address);
    Some(Postgres {
        local,
        listen: listen.host,
        port: listen.port,
        connect: connect?,
        config_dir: path(r, "postgresql.config_dir").unwrap_or_else(|| data_dir.clone()),
        data_dir,
        bin_dir: path(r, "postgresql.bin_dir"),
        pgpass: path(r, "postgresql.pgpass"),
        database: r.text("postgresql.database").unwrap_or_else(|| "postgres".to_owned()),
        rewind: rewind.unwrap_or_else(|| superuser.clone())?,
        superuser: superuser?,
        replication: replication?,
        hba: r.list("postgresql.pg_hba"),
        ident: r.list("postgresql.pg_ident"),
        custom_conf: path(r, "postgresql.custom_conf"),
        rules: rules(r),
        callbacks: callbacks(r),
        pre_promote: pre_promote(r),
        before_stop: r.parsed("postgresql.before_stop", crate::config::parse::words).unwrap_or_default(),
        proxy,
        replica_methods: replica_methods(r, named, &methods),
        methods,
        basebackup: options(r, "postgresql.basebackup", BASEBACKUP_OWNED),
        parameters,
    })
}

/// Without a password the server is to trust us, or to ask for a certificate.
fn login(r: &mut Reader, role: &str) -> Option<Login> {
    let at = |key: &str| format!("postgresql.authentication.{role}.{key}");
    let user = r.required(&at("username"));
    let password = r.secret(&at("password")).unwrap_or_else(|| SecretString::from(String::new()));
    let options = LINK_OPTIONS.iter().filter_map(|name| Some(((*name).to_owned(), r.text(&at(name))?)));
    let options = options.collect::<BTreeMap<_, _>>();
    Some(Login { user: user?, password, options })
}

/// What a node may set for itself. Shared ones are the cluster's to set, as in Patroni.
fn parameters(r: &mut Reader) -> BTreeMap<String, String> {
    let mut used = BTreeMap::new();
    for (name, value) in r.texts("postgresql.parameters") {
        let name = name.to_ascii_lowercase();
        let path = format!("postgresql.parameters.{name}");
        if is_shared(&name) {
            r.warn(&path, "every member takes this from the dynamic configuration: it is not used here");
        } else if is_owned(&name, Owner::Administrator) {
            r.warn(&path, "this is set by the agent alone: it is not used");
        } else {
            used.insert(name, value);
        }
    }
    used
}

/// The sections that `create_replica_methods` names.
fn replica_methods(r: &mut Reader, names: Vec<String>, methods: &[Method]) -> Vec<ReplicaMethod> {
    let read = |name: String| match methods.iter().find(|method| method.name == name) {
        _ if name == "basebackup" => Some(ReplicaMethod::Basebackup),
        Some(method) => Some(ReplicaMethod::Custom(method.clone())),
        None => {
            // One that is there and was refused has been named.
            r.required(&format!("postgresql.{name}.command"));
            None
        }
    };
    names.into_iter().filter_map(read).collect()
}

/// Every section that has a command: one that no list here names may be named by the store, or be used by nobody.
fn methods(r: &mut Reader, named: &[String]) -> Vec<Method> {
    let sections = r.map("postgresql").into_iter().filter(|(_, section)| section.get("command").is_some());
    let read = |(name, _)| match named.contains(&name) {
        true => replica_method(r, name),
        false => r.tolerating(|r| replica_method(r, name)),
    };
    sections.filter_map(read).collect()
}

fn replica_method(r: &mut Reader, name: String) -> Option<Method> {
    let at = |key: &str| format!("postgresql.{name}.{key}");
    let alone = r.flag(&at("no_leader")).unwrap_or(false);
    let keeps = r.flag(&at("keep_data")).unwrap_or(false);
    let silent = r.flag(&at("no_params")).unwrap_or(false);
    r.required(&at("command"))?;
    let mut words = r.parsed(&at("command"), crate::config::parse::words)?.into_iter();
    let program = words.next()?;
    let own = ["command", "no_leader", "keep_data", "no_params"];
    let keys =
        r.map(&format!("postgresql.{name}")).into_iter().filter(|(key, _)| !own.contains(&key.as_str()));
    let keys = keys.map(|(key, value)| (key, plain(&value))).collect();
    Some(Method {
        program,
        args: words.collect(),
        told: if silent { Told::Nothing } else { Told::Everything(keys) },
        old_data: if keeps { OldData::Kept } else { OldData::PutAside },
        source: if alone { Source::Anywhere } else { Source::Member },
        name,
    })
}

/// Commands in words, as a shell would split them.
fn callbacks(r: &mut Reader) -> Programs {
    let named = |(event, _): (Event, _)| {
        let path = format!("postgresql.callbacks.{}", event.word());
        let mut words = r.parsed(&path, crate::config::parse::words)?.into_iter();
        Some((event, Program { path: words.next()?.into(), args: words.collect() }))
    };
    Event::ALL.into_iter().filter_map(named).collect()
}

/// It can forbid a promotion.
fn pre_promote(r: &mut Reader) -> Option<Program> {
    let mut words = r.parsed("postgresql.pre_promote", crate::config::parse::words)?.into_iter();
    Some(Program { path: words.next()?.into(), args: words.collect() })
}

fn rules(r: &mut Reader) -> Map<String, Value> {
    const FLAGS: &[&str] = &[
        "use_pg_rewind",
        "remove_data_directory_on_rewind_failure",
        "remove_data_directory_on_diverged_timelines",
    ];
    let mut rules = Map::new();
    for name in FLAGS {
        if let Some(flag) = r.flag(&format!("postgresql.{name}")) {
            rules.insert((*name).to_owned(), flag.into());
        }
    }
    if let Some(command) = r.text("postgresql.recovery_conf.restore_command") {
        rules.insert("recovery_conf".to_owned(), serde_json::json!({ "restore_command": command }));
    }
    rules
}

fn local(r: &mut Reader, listen: &HostPort, parameters: &BTreeMap<String, String>) -> Local {
    let socket = r.flag("postgresql.use_unix_socket").unwrap_or(false);
    let dirs = parameters.get("unix_socket_directories").map_or("/var/run/postgresql", String::as_str);
    let first = |text: &str| text.split(',').next().unwrap_or_default().trim().to_owned();
    if socket {
        return Local::Socket(Utf8PathBuf::from(first(dirs)));
    }
    let hosts: Vec<&str> = listen.host.split(',').map(str::trim).collect();
    let wildcard =
        hosts.iter().any(|host| matches!(*host, "*" | "0.0.0.0" | "::" | "localhost" | "127.0.0.1"));
    Local::Tcp(if wildcard { "localhost".to_owned() } else { first(&listen.host) })
}

/// Patroni's names and defaults.
fn watchdog(r: &mut Reader) -> Guard {
    let need = r.parsed("watchdog.mode", |text| match text.to_ascii_lowercase().as_str() {
        // YAML reads `off` and `no` as false.
        "off" | "disable" | "disabled" => Ok(Need::Off),
        "automatic" | "auto" => Ok(Need::Automatic),
        "required" | "require" => Ok(Need::Required),
        _ => Err("off, automatic or required".to_owned()),
    });
    let margin = r.parsed("watchdog.safety_margin", |text| match text.parse::<i64>() {
        Ok(-1) => Ok(Margin::Half),
        Ok(seconds) if seconds >= 0 => Ok(Margin::Of(Duration::from_secs(seconds.unsigned_abs()))),
        Ok(_) | Err(_) => Err("a number of seconds, or -1 for half of the ttl".to_owned()),
    });
    Guard { need: need.unwrap_or(Need::Automatic), margin: margin.unwrap_or(Margin::Of(SAFETY_MARGIN)) }
}

fn watchdog_device(r: &mut Reader) -> WatchdogDevice {
    let driver = r.parsed("watchdog.driver", |text| match text {
        "default" => Ok(WatchdogDriver::Kernel),
        "testing" => Ok(WatchdogDriver::Written),
        _ => Err("default or testing".to_owned()),
    });
    let at = path(r, "watchdog.device");
    WatchdogDevice {
        driver: driver.unwrap_or(WatchdogDriver::Kernel),
        path: at.unwrap_or_else(|| WatchdogDevice::USUAL.into()),
    }
}

// ---- addresses and paths

fn address(r: &mut Reader, path: &str, parse: fn(&str) -> Result<HostPort, String>) -> Option<HostPort> {
    if r.value(path).is_none() {
        r.wrong(path, "is required");
    }
    r.parsed(path, parse)
}

/// `host:port`, several hosts separated by commas, `*` for all.
fn listen_address(text: &str) -> Result<HostPort, String> {
    let expected = || "an address and a port, such as 0.0.0.0:5432".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let port = port.parse().map_err(|_not_a_number| expected())?;
    let host = host.trim_matches(['[', ']']).trim();
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(expected());
    }
    Ok(HostPort { host: host.to_owned(), port })
}

/// One host that others reach.
fn connect_address(text: &str) -> Result<HostPort, String> {
    let at = listen_address(text)
        .map_err(|_listen| "an address and a port that others reach, such as 192.0.2.1:5432".to_owned())?;
    if matches!(at.host.as_str(), "*" | "0.0.0.0" | "::") || at.host.contains(',') {
        return Err("one address that others reach, not a wildcard".to_owned());
    }
    Ok(at)
}

fn with_port(host: &str, port: u16) -> String {
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let has_port = has_port && (!host.starts_with('[') || host.contains("]:"));
    if has_port { host.to_owned() } else { format!("{host}:{port}") }
}

pub(super) fn path(r: &mut Reader, at: &str) -> Option<Utf8PathBuf> {
    r.parsed(at, |text| {
        let path = Utf8PathBuf::from(text);
        if path.is_absolute() { Ok(path) } else { Err("a path from the root".to_owned()) }
    })
}

/// A certificate and its key, which may be in one file.
fn pair(r: &mut Reader, certificate: &str, key: &str) -> Option<(Utf8PathBuf, Utf8PathBuf)> {
    let certificate = path(r, certificate);
    let key = path(r, key);
    let certificate = certificate?;
    Some((certificate.clone(), key.unwrap_or(certificate)))
}
