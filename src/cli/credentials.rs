//! Certificates for tools outside of the cluster, made from the same secret as the nodes' own: no node is asked, and
//! nothing need be running.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use camino::{Utf8Path, Utf8PathBuf};
use secrecy::ExposeSecret as _;
use serde_json::{Map, Value, json};

use super::ctl::client::{Cluster, Errand};
use super::ctl::{Json, say};
use super::{Api, Printed, print, yaml};
use crate::clock;
use crate::config::Config;
use crate::process::{self, Mode, RunAs};
use crate::tls::{self, Bundle, File, Purpose, REPLICATION_ROLE, Root, Secrecy, Secret, Subject};
use crate::types::NodeId;

/// Whose name a command that a person types carries.
const OURS: &str = "pgherd-cli";

/// Options of `ca`.
#[derive(Debug, Clone, clap::Args)]
pub struct Ca {
    /// Which of the two
    #[arg(long = "for", value_name = "WHAT", default_value = "database")]
    pub purpose: For,
    /// How to print: both then.
    #[command(flatten)]
    pub json: Json,
}

/// What a certificate is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum For {
    /// etcd and the REST API: whoever has such a certificate rules the cluster
    Control,
    /// Logging in to PostgreSQL as the role that it names
    Database,
}

/// Options of `client-cert`.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientCert {
    /// The common name: whose certificate it is
    #[arg(long, value_name = "NAME")]
    pub cn: String,
    /// What it is good for
    #[arg(long = "for", value_name = "WHAT", default_value = "control")]
    pub purpose: For,
    /// Days that it is valid
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
    /// Write ca.crt, client.crt and client.key here instead of printing certificate and key
    #[arg(long, value_name = "DIR")]
    pub out: Option<Utf8PathBuf>,
    /// How to print: also the authority's certificate then.
    #[command(flatten)]
    pub json: Json,
}

/// Options of `patronictl-config`.
#[derive(Debug, Clone, clap::Args)]
pub struct Patronictl {
    /// Where to write patronictl.yaml and what it names
    pub dir: Utf8PathBuf,
    /// etcd's addresses (host:port; those of the members, if nothing is said)
    #[arg(long, value_name = "HOST:PORT")]
    pub etcd: Vec<String>,
    /// Days that the certificate is valid
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
    /// Which node to ask for the members.
    #[command(flatten)]
    pub api: Api,
    /// How to print.
    #[command(flatten)]
    pub json: Json,
}

fn root(config: &Config) -> anyhow::Result<Root> {
    let database = &config.database;
    let secret = match &config.tls.passphrase {
        Some(passphrase) => Secret::Passphrase(passphrase.expose_secret()),
        None => Secret::Passwords {
            superuser: database.superuser_password.expose_secret().as_bytes(),
            replication: database.replication_password.expose_secret().as_bytes(),
        },
    };
    Root::derive(&secret, &config.app).context("could not derive the keys")
}

fn subject(config: &Config, name: &str) -> Subject {
    Subject {
        app: config.app.clone(),
        node_id: NodeId(name.to_owned()),
        addresses: Vec::new(),
        names: Vec::new(),
        validity_days: config.tls.validity_days,
    }
}

/// What a command shows to the nodes: they take it for one of theirs.
///
/// # Errors
/// The keys cannot be derived.
pub fn own_bundle(config: &Config) -> anyhow::Result<Bundle> {
    Ok(tls::issue(&root(config)?, &subject(config, OURS), clock::wall())?)
}

/// For connections to PostgreSQL: its certificate must be of the service CA.
///
/// # Errors
/// The keys cannot be derived.
pub fn database_client(config: &Config) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    Ok(tls::database_client(&root(config)?, &subject(config, OURS), clock::wall())?)
}

/// `pgherd ca`.
///
/// # Errors
/// The keys cannot be derived.
pub fn ca(config: &Config, args: &Ca) -> anyhow::Result<Printed> {
    let (internal, service) = tls::authorities(&root(config)?, &subject(config, OURS), clock::wall())?;
    if args.json.json {
        return print(&format!("{:#}\n", json!({ "control": internal, "database": service })));
    }
    print(match args.purpose {
        For::Control => &internal,
        For::Database => &service,
    })
}

/// `pgherd client-cert`.
///
/// # Errors
/// The name cannot stand in a certificate, or the files cannot be written.
pub fn client_cert(config: &Config, args: &ClientCert) -> anyhow::Result<Printed> {
    if args.purpose == For::Database && args.cn == REPLICATION_ROLE {
        bail!("{REPLICATION_ROLE} is the role that members stream as: its certificate stays with them");
    }
    let files = client_files(config, &args.cn, (args.purpose, args.days))?;
    let Some(dir) = &args.out else {
        if args.json.json {
            let pems: Map<_, _> =
                files.iter().map(|file| (file.name.to_owned(), file.pem.as_str().into())).collect();
            return print(&format!("{:#}\n", Value::from(pems)));
        }
        let text: String = files.iter().filter(|f| f.name != "ca.crt").map(|f| f.pem.as_str()).collect();
        return print(&text);
    };
    write_files(dir, &files)?;
    let told = json!({ "dir": dir, "files": files.iter().map(|file| file.name).collect::<Vec<_>>() });
    say(args.json, &format!("wrote ca.crt, client.crt and client.key to {dir}"), &told)
}

fn client_files(config: &Config, name: &str, (purpose, days): (For, u32)) -> anyhow::Result<Vec<File>> {
    let purpose = match purpose {
        For::Control => Purpose::Control,
        For::Database => Purpose::Database,
    };
    Ok(tls::client(&root(config)?, &subject(config, name), (purpose, days), clock::wall())?)
}

fn write_files(dir: &Utf8Path, files: &[File]) -> anyhow::Result<()> {
    process::make_private_dir(dir, &RunAs::Same).with_context(|| format!("could not make {dir}"))?;
    for file in files {
        let mode = match file.secret {
            Secrecy::Public => Mode::Public,
            Secrecy::Key => Mode::Private,
        };
        write(&dir.join(file.name), file.pem.as_bytes(), mode)?;
    }
    Ok(())
}

fn write(path: &Utf8Path, bytes: &[u8], mode: Mode) -> anyhow::Result<()> {
    let written = process::write_atomic(path, bytes, &RunAs::Same, mode);
    written.map(|_changed| ()).with_context(|| format!("could not write {path}"))
}

/// `pgherd patronictl-config`: everything that patronictl and etcdctl need, in one directory.
///
/// # Errors
/// The files cannot be written, or nobody says where etcd is.
pub async fn patronictl_config(config: &Config, args: &Patronictl) -> anyhow::Result<Printed> {
    let dir = std::path::absolute(&args.dir).context("could not find the directory")?;
    let dir = Utf8PathBuf::from_path_buf(dir).map_err(|dir| anyhow::anyhow!("{dir:?} is no UTF-8"))?;
    let hosts = if args.etcd.is_empty() { etcd_hosts(config, args).await? } else { args.etcd.clone() };
    let mut files = client_files(config, "patronictl", (For::Control, args.days))?;
    let (_internal, service) = tls::authorities(&root(config)?, &subject(config, OURS), clock::wall())?;
    files.push(File { name: "api-ca.crt", pem: service.into(), secret: Secrecy::Public });
    write_files(&dir, &files)?;
    let path = dir.join("patronictl.yaml");
    write(&path, yaml::write(&patronictl_yaml(config, &dir, &hosts)).as_bytes(), Mode::Private)?;
    let words = format!(
        "patronictl -c {path} list\n\
         etcdctl --endpoints https://{} --cacert {dir}/ca.crt --cert {dir}/client.crt --key {dir}/client.key member list",
        hosts.first().map_or("", String::as_str)
    );
    say(args.json, &words, &json!({ "file": path, "dir": dir, "etcd": hosts }))
}

async fn etcd_hosts(config: &Config, args: &Patronictl) -> anyhow::Result<Vec<String>> {
    let picture = Cluster::new(&args.api, Some(config), Errand::Look)?.picture().await;
    let picture = picture.context("no node says where etcd is: name it with --etcd HOST:PORT")?;
    let port = config.advertised.etcd_client;
    let addresses = picture.members.iter().filter_map(|member| member.address());
    let hosts: Vec<String> = addresses
        .map(
            |(host, _)| {
                if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
            },
        )
        .collect();
    if hosts.is_empty() {
        bail!("there are no members yet: name etcd with --etcd HOST:PORT")
    } else {
        Ok(hosts)
    }
}

fn patronictl_yaml(config: &Config, dir: &Utf8Path, hosts: &[String]) -> Value {
    let file = |name: &str| Value::from(dir.join(name).into_string());
    let etcd = Map::from_iter([
        ("hosts".to_owned(), json!(hosts)),
        ("protocol".to_owned(), "https".into()),
        ("cacert".to_owned(), file("ca.crt")),
        ("cert".to_owned(), file("client.crt")),
        ("key".to_owned(), file("client.key")),
    ]);
    let ctl = Map::from_iter([
        ("cacert".to_owned(), file("api-ca.crt")),
        ("certfile".to_owned(), file("client.crt")),
        ("keyfile".to_owned(), file("client.key")),
    ]);
    json!({ "scope": config.app, "namespace": "/service/", "etcd3": etcd, "ctl": ctl })
}
