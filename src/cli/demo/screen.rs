//! What the demo shows. Happenings and explanations are printed once and scroll away as in any log; below them, in a
//! terminal, stands the member table, which is drawn again as it changes. Without a terminal a table is appended when
//! a role or a state has changed.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use super::Ssl;
use super::place::{POSTGRES_PORT, Place, Subnet};
use crate::cli::table;

/// What the texts speak of.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) place: Place,
    pub(super) subnet: Subnet,
    pub(super) ssl: Ssl,
    pub(super) password: String,
    /// How the user starts this program.
    pub(super) program: String,
}

/// The output and what of it is still to be drawn over.
#[derive(Debug)]
pub(super) struct Screen {
    facts: Facts,
    output: Output,
    /// The nodes of the connection strings that were printed last.
    nodes: Vec<u8>,
    /// The table as it stands.
    table: String,
    /// What was worth printing about the last table (without a terminal).
    shape: String,
}

#[derive(Debug)]
enum Output {
    Terminal,
    Lines,
}

impl Screen {
    pub(super) fn new(facts: Facts) -> Self {
        let output = if io::stdout().is_terminal() { Output::Terminal } else { Output::Lines };
        print(&format!("{}{}", headline(&facts), things_to_try(&facts)));
        Self { facts, output, nodes: Vec::new(), table: String::new(), shape: String::new() }
    }

    /// Something happened.
    pub(super) fn event(&mut self, text: &str) {
        self.above_table(&format!("{} {text}\n", time()));
    }

    /// Takes the table away: from here on there is no cluster.
    pub(super) fn close(&mut self) {
        if let Output::Terminal = self.output {
            print(&erase(&self.table));
        }
        self.table.clear();
    }

    /// Says who is listed now.
    pub(super) fn listed(&mut self, nodes: &[u8]) {
        if self.nodes != nodes {
            self.nodes = nodes.to_vec();
            self.above_table(&connections(&self.facts, nodes));
        }
    }

    /// The members as a node sees them now.
    pub(super) fn members(&mut self, cluster: Option<&Value>) {
        let table = match cluster {
            Some(cluster) => table::members(cluster),
            None => "no node answers\n".to_owned(),
        };
        match self.output {
            Output::Terminal => {
                let over = erase(&self.table);
                self.table = table;
                print(&format!("{over}{}", unwrapped(&self.table)));
            }
            Output::Lines => {
                let shape = shape(cluster);
                if self.shape != shape {
                    self.shape = shape;
                    print(&format!("{} members\n{table}", time()));
                }
            }
        }
    }

    fn above_table(&self, text: &str) {
        match self.output {
            Output::Terminal => print(&format!("{}{text}{}", erase(&self.table), unwrapped(&self.table))),
            Output::Lines => print(text),
        }
    }
}

/// Up to the first line of what was drawn, and clears from there.
fn erase(drawn: &str) -> String {
    match drawn.lines().count() {
        0 => String::new(),
        lines => format!("\x1b[{lines}A\r\x1b[J"),
    }
}

/// A line that is too long for the terminal must end at its edge: a second row would not be erased.
fn unwrapped(text: &str) -> String {
    format!("\x1b[?7l{text}\x1b[?7h")
}

/// Output that nobody reads any more is no reason to drop the cluster.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
}

/// The wall clock of the machine's time zone would need a time zone database; UTC is what the logs show too.
fn time() -> String {
    crate::clock::wall().strftime("%H:%M:%S").to_string()
}

/// What must differ for a table to be worth printing again: not positions, which move all the time.
fn shape(cluster: Option<&Value>) -> String {
    let members = cluster.and_then(|cluster| cluster.get("members")).and_then(Value::as_array);
    let word = |member: &Value, key: &str| member.get(key).map(ToString::to_string).unwrap_or_default();
    let line = |member: &Value| ["name", "role", "state", "timeline"].map(|key| word(member, key)).join(" ");
    members.into_iter().flatten().map(|member| line(member) + "\n").collect()
}

fn headline(facts: &Facts) -> String {
    let moved = match facts.place.moved {
        Some(why) => format!(" (volumes in {}: {why})", facts.place.nodes),
        None => String::new(),
    };
    format!("pgherd demo - data and logs in {}{moved} - Ctrl-C stops everything\n", facts.place.home)
}

fn connections(facts: &Facts, nodes: &[u8]) -> String {
    let ssl = match facts.ssl {
        Ssl::True => "sslmode=require",
        Ssl::False => "",
    };
    let at = |node: &u8| format!("{}:{POSTGRES_PORT}", facts.subnet.node(*node));
    let url = |hosts: &str, options: &[&str]| {
        let options: Vec<_> = options.iter().copied().filter(|option| !option.is_empty()).collect();
        let query = if options.is_empty() { String::new() } else { format!("?{}", options.join("&")) };
        format!("postgresql://postgres:{}@{hosts}/postgres{query}", facts.password)
    };
    let all = nodes.iter().map(at).collect::<Vec<_>>().join(",");
    let mut text =
        format!("\nconnect\n  read-write  psql '{}'\n", url(&all, &["target_session_attrs=read-write", ssl]));
    for node in nodes {
        text.push_str(&format!("  node {node}      psql '{}'\n", url(&at(node), &[ssl])));
    }
    text
}

fn things_to_try(facts: &Facts) -> String {
    let demo = format!("{} demo", facts.program);
    let dir = match facts.place.home.file_name() {
        Some("demo-data") => String::new(),
        _ => format!(" --dir {}", facts.place.home),
    };
    let line = |what: &str, command: &str| format!("  {what:<28}{demo} {command}{dir}\n");
    let mut text =
        String::from("\nfive things to try, in a second terminal (a node is a number or `primary`)\n");
    text.push_str(&line("kill the primary", "kill primary"));
    text.push_str(&line("  only its postmaster", "crash primary"));
    text.push_str(&line("add a node", "add"));
    text.push_str(&line("remove a node", &format!("remove 3{dir} && {demo} stop 3")));
    text.push_str(&line("stop the primary cleanly", "stop primary"));
    text.push_str(&line("  and start it (its number)", "start 1"));
    text.push_str(&line("stop the location API", "api off"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn facts(ssl: Ssl) -> Facts {
        let place = Place { home: "/x/demo-data".into(), nodes: "/x/demo-data".into(), moved: None };
        let subnet = Subnet::parse("127.0.1").unwrap();
        Facts { place, subnet, ssl, password: "pw".to_owned(), program: "target/debug/pgherd".to_owned() }
    }

    #[test]
    fn the_read_write_string_names_every_node() {
        let text = connections(&facts(Ssl::False), &[1, 2]);
        let wanted = "postgresql://postgres:pw@127.0.1.1:5432,127.0.1.2:5432/postgres?target_session_attrs=read-write'";
        assert!(text.contains(wanted), "{text}");
        assert!(text.contains("postgresql://postgres:pw@127.0.1.2:5432/postgres'"), "{text}");
        assert!(connections(&facts(Ssl::True), &[1]).contains("/postgres?sslmode=require'"));
    }

    #[test]
    fn a_drawn_table_is_erased_line_by_line() {
        assert_eq!(erase(""), "");
        assert_eq!(erase("a\nb\n"), "\x1b[2A\r\x1b[J");
    }

    #[test]
    fn a_moved_position_is_no_change_but_a_role_is() {
        let cluster =
            |role: &str, lag: u64| json!({"members": [{"name": "node-1", "role": role, "lag": lag}]});
        assert_eq!(shape(Some(&cluster("leader", 1))), shape(Some(&cluster("leader", 2))));
        assert_ne!(shape(Some(&cluster("leader", 1))), shape(Some(&cluster("replica", 1))));
    }
}
