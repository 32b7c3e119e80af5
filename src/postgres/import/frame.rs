//! What belongs to a database as a whole: how it was made (encoding, locale), and its grants, settings and comment. pg_dump
//! knows them best, so they are taken out of its archive by kind.

use super::statements::statements;
use super::{COPY_LIMIT, Desk, Side};
use crate::postgres::bootstrap::SecretFile;
use crate::postgres::{Error, control};

/// Kinds of entries in an archive's table of contents. The database itself and its settings come unasked.
const KINDS: [&str; 3] = ["ACL - DATABASE ", "COMMENT - DATABASE ", "SECURITY LABEL - DATABASE "];

/// The database as a whole.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    /// Makes it as it was made there.
    pub(super) made: String,
    /// Gives it the rest, statement by statement: another version of PostgreSQL may not know a parameter.
    pub(super) rest: Vec<String>,
}

impl Frame {
    pub(super) async fn read(desk: &Desk<'_>, database: &str) -> Result<Self, Error> {
        let archive = SecretFile::write(desk.config, "import.frame", "")?;
        let dump = desk.program("pg_dump", (Side::Source, database)).args([
            "--create",
            "--schema-only",
            "--format=custom",
            "--encoding=UTF8",
            "--no-owner",
            "--no-tablespaces",
            "--file",
            archive.0.as_str(),
        ]);
        control::run(&dump, "pg_dump", COPY_LIMIT).await?;
        let restore = |args: &[&str]| {
            let command =
                desk.program("pg_restore", (Side::Here, "postgres")).args(["--create", "--no-owner"]);
            command.args(args.iter().copied()).arg(archive.0.as_str())
        };
        let all = control::run(&restore(&["--list"]), "pg_restore", COPY_LIMIT).await?;
        let list = SecretFile::write(desk.config, "import.list", &entries(&all.stdout))?;
        let script = SecretFile::write(desk.config, "import.sql", "")?;
        let chosen = ["--use-list", list.0.as_str(), "--file", script.0.as_str()];
        control::run(&restore(&chosen), "pg_restore", COPY_LIMIT).await?;
        let bytes = std::fs::read(&script.0).map_err(Error::file("read", &script.0))?;
        Ok(Self::of(&String::from_utf8_lossy(&bytes)))
    }

    fn of(script: &str) -> Self {
        let mut frame = Self::default();
        for statement in statements(script) {
            match statement.split_whitespace().next() {
                Some("CREATE") => frame.made = statement,
                // What a restoring session sets for itself.
                Some("SET" | "SELECT") | None => {}
                Some(_property) => frame.rest.push(statement),
            }
        }
        frame
    }
}

/// The lines `ID; CATALOG OBJECT KIND ...` of what is about the database.
fn entries(list: &str) -> String {
    let is_one = |line: &&str| {
        let kind = line.split_once("; ").and_then(|(_, rest)| rest.splitn(3, ' ').nth(2));
        kind.is_some_and(|kind| KINDS.iter().any(|wanted| kind.starts_with(wanted)))
    };
    list.lines().filter(is_one).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_by_their_kind() {
        let list = ";\n; Archive created at 2026\n;     dbname: shop\n\
            3351; 1262 16390 DATABASE - shop app\n3352; 0 0 DATABASE PROPERTIES - shop app\n\
            3353; 0 0 ACL - DATABASE shop app\n214; 1259 16391 TABLE public DATABASE - app\n\
            3354; 0 0 COMMENT - DATABASE shop app\n3355; 0 0 ACL public TABLE t app\n";
        assert_eq!(
            entries(list),
            "3353; 0 0 ACL - DATABASE shop app\n3354; 0 0 COMMENT - DATABASE shop app\n"
        );
    }

    #[test]
    fn the_database_is_made_first_and_completed_later() {
        let script = "SET lock_timeout = 0;\nSELECT pg_catalog.set_config('search_path', '', false);\n\
            CREATE DATABASE shop WITH ENCODING = 'LATIN1';\n\\connect shop\nSET lock_timeout = 0;\n\
            ALTER DATABASE shop SET work_mem TO '7MB';\nREVOKE CONNECT ON DATABASE shop FROM PUBLIC;\n";
        let frame = Frame::of(script);
        assert_eq!(frame.made, "CREATE DATABASE shop WITH ENCODING = 'LATIN1';\n");
        assert_eq!(frame.rest.len(), 2);
    }
}
