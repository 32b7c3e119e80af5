//! `query`: one statement or script on one member, as the superuser, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use secrecy::ExposeSecret as _;
use serde_json::{Map, Value};
use tokio::task::JoinSet;
use tokio_postgres::{Client, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::client::Cluster;
use super::{Json, Role, read};
use crate::cli::{Api, Printed, credentials, print, table};
use crate::config::Config;

/// A connection across a continent, TLS and SCRAM included.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Options of `query`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Which node to ask for the members.
    #[command(flatten)]
    pub api: Api,
    /// The statement
    #[arg(short, long, value_name = "SQL", required_unless_present = "file")]
    pub command: Option<String>,
    /// Or a file with statements
    #[arg(short, long, value_name = "FILE", conflicts_with = "command")]
    pub file: Option<String>,
    /// On any member with this role (the leader, if nothing is said)
    #[arg(short, long)]
    pub role: Option<Role>,
    /// On this member
    #[arg(short, long, conflicts_with = "role")]
    pub member: Option<String>,
    /// In this database (POSTGRES_DB, if nothing is said)
    #[arg(short, long, value_name = "NAME")]
    pub dbname: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub json: Json,
}

/// Runs it.
///
/// # Errors
/// No such member, no connection, or PostgreSQL refuses.
pub async fn run(cluster: &Cluster, args: &Args, config: Option<&Config>) -> anyhow::Result<Printed> {
    let config =
        config.context("the password of the superuser is in the node's environment: run this there")?;
    let sql = match (&args.command, &args.file) {
        (Some(sql), _) => sql.clone(),
        (None, Some(file)) => {
            std::fs::read_to_string(file).with_context(|| format!("could not read {file}"))?
        }
        (None, None) => bail!("what shall it run? say --command or --file"),
    };
    let picture = cluster.picture().await?;
    let (host, port) = read::address(&picture, args.member.as_deref(), args.role)?;
    let database = args.dbname.as_deref().unwrap_or(&config.database.name);
    let session = Session::open(config, (&host, port), database).await?;
    print(&shown(&session.run(&sql).await?, args.json))
}

/// A connection as the superuser, who is in the node's environment.
#[derive(Debug)]
pub struct Session {
    client: Client,
    _driver: JoinSet<Result<(), tokio_postgres::Error>>,
}

impl Session {
    /// Connects to a member.
    ///
    /// # Errors
    /// The keys cannot be derived, or there is no connection.
    pub async fn open(config: &Config, (host, port): (&str, u16), database: &str) -> anyhow::Result<Self> {
        let mut target = tokio_postgres::Config::new();
        target
            .host(host)
            .port(port)
            .user(&config.database.superuser)
            .password(config.database.superuser_password.expose_secret())
            .dbname(database)
            .application_name("pgherd")
            .connect_timeout(CONNECT_PATIENCE);
        let tls = MakeRustlsConnect::new(Arc::unwrap_or_clone(credentials::database_client(config)?));
        let (client, connection) =
            target.connect(tls).await.with_context(|| format!("could not connect to {host}:{port}"))?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Self { client, _driver: driver })
    }

    async fn run(&self, sql: &str) -> anyhow::Result<Vec<SimpleQueryMessage>> {
        self.client.simple_query(sql).await.map_err(in_words)
    }

    /// The rows of one statement; a null is an empty text.
    ///
    /// # Errors
    /// PostgreSQL refuses.
    pub async fn rows(&self, sql: &str) -> anyhow::Result<Vec<Vec<String>>> {
        let tables = tables(&self.run(sql).await?);
        let rows = tables.into_iter().flat_map(|table| table.rows);
        Ok(rows.map(|row| row.into_iter().map(Option::unwrap_or_default).collect()).collect())
    }
}

/// PostgreSQL's own sentence, where it has one.
fn in_words(error: tokio_postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(said) => anyhow::anyhow!("PostgreSQL: {}", said.message()),
        None => error.into(),
    }
}

/// What one statement answered.
struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
}

fn tables(messages: &[SimpleQueryMessage]) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                let columns = columns.iter().map(|c| c.name().to_owned()).collect();
                tables.push(Table { columns, rows: Vec::new() });
            }
            SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect();
                if let Some(table) = tables.last_mut() {
                    table.rows.push(cells);
                }
            }
            SimpleQueryMessage::CommandComplete(_) => {}
            // The library's type is open: what a later version adds is nothing that this one shows.
            _ => {}
        }
    }
    tables
}

/// A table for each result, or the number of rows that a statement touched.
fn shown(messages: &[SimpleQueryMessage], json: Json) -> String {
    let tables = tables(messages);
    if json.json {
        let rows = tables.iter().flat_map(|t| t.rows.iter().map(|row| object(&t.columns, row)));
        return format!("{:#}\n", Value::Array(rows.collect()));
    }
    if tables.is_empty() {
        let touched = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::CommandComplete(n) => Some(format!("{n} rows\n")),
            SimpleQueryMessage::Row(_) | SimpleQueryMessage::RowDescription(_) | _ => None,
        });
        return touched.collect();
    }
    tables.iter().map(|table| table::rows(&table.columns, &table.rows)).collect()
}

fn object(columns: &[String], row: &[Option<String>]) -> Value {
    let cell = |(name, value): (&String, &Option<String>)| {
        (name.clone(), value.clone().map_or(Value::Null, Value::String))
    };
    Value::Object(columns.iter().zip(row).map(cell).collect::<Map<_, _>>())
}
