//! The roles of a source, from the words of pg_dumpall. Pure.

use std::collections::BTreeSet;

use super::statements::statements;

/// What is to be run here, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Roles {
    /// Roles, their rights, and who is a member of whom.
    pub(super) made: String,
    /// `ALTER ROLE ... SET`, one by one: another version of PostgreSQL may not know the parameter.
    pub(super) settings: Vec<String>,
}

/// Which roles are here.
#[derive(Debug)]
pub(super) struct Present {
    /// Everybody's.
    pub(super) all: BTreeSet<String>,
    /// The cluster's own: whatever the source says of them, their passwords and rights stay.
    pub(super) own: BTreeSet<String>,
}

impl Roles {
    /// What this dump of roles means for a server that has these. The same again for one that was interrupted.
    pub(super) fn of(dump: &str, present: &Present) -> Self {
        let mut roles = Self::default();
        for statement in statements(dump) {
            if let Some(rest) = statement.strip_prefix("CREATE ROLE ") {
                if !present.all.contains(&identifier(rest).0) {
                    roles.made.push_str(&statement);
                }
            } else if let Some(rest) = statement.strip_prefix("ALTER ROLE ") {
                let (name, rest) = identifier(rest);
                if present.own.contains(&name) {
                    continue;
                }
                if rest.starts_with(" SET ") {
                    roles.settings.push(statement);
                } else {
                    roles.made.push_str(&statement);
                }
            } else if statement.starts_with("GRANT ") {
                roles.made.push_str(&without_grantor(&statement));
            } else if statement.starts_with("COMMENT ON ROLE ") {
                roles.made.push_str(&statement);
            }
        }
        roles
    }
}

/// A membership is granted by this cluster's superuser: the source's may be an ordinary one here, who may not.
fn without_grantor(statement: &str) -> String {
    match statement.rsplit_once(" GRANTED BY ") {
        Some((grant, by)) if identifier(by).1.trim_end() == ";" => format!("{grant};\n"),
        Some(_) | None => statement.to_owned(),
    }
}

/// The name at the beginning of this text, quoted or not, and what follows it.
fn identifier(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ';']).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        return (name.to_owned(), rest);
    };
    let mut name = String::new();
    let mut rest = quoted.chars();
    while let Some(character) = rest.next() {
        if character == '"' {
            // Within quotes a quote is doubled.
            match rest.as_str().strip_prefix('"') {
                Some(more) => rest = more.chars(),
                None => break,
            }
        }
        name.push(character);
    }
    (name, rest.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_clusters_own_roles_stay_and_the_others_come() {
        let dump = "--\n\\restrict x\nSET client_encoding = 'UTF8';\nCREATE ROLE app;\n\
            ALTER ROLE app WITH LOGIN PASSWORD 'SCRAM-SHA-256$x';\nCREATE ROLE postgres;\n\
            ALTER ROLE postgres WITH SUPERUSER PASSWORD 'y';\nCREATE ROLE \"Odd one\";\n\
            ALTER ROLE replicator WITH LOGIN;\nGRANT app TO \"Odd one\" WITH INHERIT TRUE GRANTED BY postgres;\n\
            COMMENT ON ROLE app IS 'first;\nsecond \"line';\nCREATE ROLE half;\nALTER ROLE half WITH LOGIN;\n\
            ALTER ROLE app SET work_mem TO '64MB';\nALTER ROLE postgres SET work_mem TO '1MB';\n";
        let own = set(&["postgres", "replicator"]);
        let present = Present { all: own.iter().cloned().chain(set(&["half"])).collect(), own };
        let roles = Roles::of(dump, &present);
        let expected = "CREATE ROLE app;\nALTER ROLE app WITH LOGIN PASSWORD 'SCRAM-SHA-256$x';\n\
            CREATE ROLE \"Odd one\";\nGRANT app TO \"Odd one\" WITH INHERIT TRUE;\n\
            COMMENT ON ROLE app IS 'first;\nsecond \"line';\nALTER ROLE half WITH LOGIN;\n";
        assert_eq!(roles.made, expected);
        assert_eq!(roles.settings, ["ALTER ROLE app SET work_mem TO '64MB';\n"]);
    }

    #[test]
    fn a_name_is_read_with_its_quotes() {
        for (text, name, rest) in [
            ("a b;", "a", " b;"),
            ("a;", "a", ";"),
            ("\"a b\" WITH", "a b", " WITH"),
            ("\"a\"\"b\";", "a\"b", ";"),
        ] {
            assert_eq!(identifier(text), (name.to_owned(), rest));
        }
    }
}
