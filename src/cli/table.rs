//! The table of members, as patronictl prints it. Pure: from the JSON of `/cluster` to text.

use comfy_table::{CellAlignment, ContentLineStyle, LineStyle, Table, TableStyle};
use serde_json::Value;

/// ASCII, so that it survives every terminal and every paste.
const STYLE: TableStyle = TableStyle::new()
    .top_border(LineStyle::new('+', '-', '+', '+'))
    .header_lines(ContentLineStyle::new('|', '|', '|'))
    .header_separator(LineStyle::new('+', '-', '+', '+'))
    .content_lines(ContentLineStyle::new('|', '|', '|'))
    .bottom_border(LineStyle::new('+', '-', '+', '+'));

/// Lags are shown in these, rounded, as patronictl does.
const MEGABYTE: u64 = 1024 * 1024;
/// PostgreSQL's port when nobody said otherwise: not worth showing.
const USUAL_PORT: u64 = 5432;

/// A column: its title, which side it leans to, and what it shows of a member.
struct Column {
    title: &'static str,
    alignment: CellAlignment,
    cell: fn(&Value) -> String,
    /// Shown even when no member has anything to say.
    always: bool,
}

const fn column(title: &'static str, cell: fn(&Value) -> String) -> Column {
    Column { title, alignment: CellAlignment::Left, cell, always: true }
}

const fn number(title: &'static str, cell: fn(&Value) -> String) -> Column {
    Column { title, alignment: CellAlignment::Right, cell, always: true }
}

const fn rare(title: &'static str, cell: fn(&Value) -> String) -> Column {
    Column { title, alignment: CellAlignment::Left, cell, always: false }
}

/// Behind Member and Host, which need to see all members.
const COLUMNS: &[Column] = &[
    column("Role", |m| title_case(&text(m, "role"))),
    column("State", |m| text(m, "state")),
    number("TL", |m| text(m, "timeline")),
    number("Receive LSN", |m| text(m, "receive_lsn")),
    number("Lag", |m| megabytes(m, "receive_lag")),
    number("Replay LSN", |m| text(m, "replay_lsn")),
    number("Lag", |m| megabytes(m, "replay_lag")),
    rare("Pending restart", |m| if m.get("pending_restart").is_some() { "*".into() } else { String::new() }),
    rare("Pending restart reason", pending_reason),
    rare("Scheduled restart", |m| {
        m.get("scheduled_restart").map_or_else(String::new, |r| text(r, "schedule"))
    }),
    rare("Tags", tags),
];

/// The table of all members, with the cluster's name and identity in its upper border and what concerns the whole
/// cluster (maintenance mode, a scheduled switchover) below it. Ends with a newline.
pub fn members(cluster: &Value) -> String {
    let rows: &[Value] = cluster.get("members").and_then(Value::as_array).map_or(&[], Vec::as_slice);
    let columns: Vec<&Column> =
        COLUMNS.iter().filter(|c| c.always || rows.iter().any(|row| !(c.cell)(row).is_empty())).collect();
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(["Member", "Host"].into_iter().chain(columns.iter().map(|c| c.title)));
    let ports = port_display(rows);
    for row in rows {
        let fixed = [text(row, "name"), host(row, ports)];
        table.add_row(fixed.into_iter().chain(columns.iter().map(|c| (c.cell)(row))));
    }
    for (index, column) in columns.iter().enumerate() {
        // Member and Host stand before them.
        if let Some(cells) = table.column_mut(index + 2) {
            cells.set_cell_alignment(column.alignment);
        }
    }
    let mut out = with_title(&table.to_string(), &title(cluster));
    out.push_str(&footer(cluster));
    out
}

/// The members in the order and under the names of a tree: below each member those that stream from it.
pub fn as_tree(cluster: &Value) -> Value {
    let mut cluster = cluster.clone();
    let rows = cluster.get("members").and_then(Value::as_array).cloned().unwrap_or_default();
    let leads = |m: &Value| matches!(text(m, "role").as_str(), "leader" | "standby_leader");
    let names: Vec<String> = rows.iter().map(|m| text(m, "name")).collect();
    let root = rows.iter().find(|m| leads(m)).map(|m| text(m, "name"));
    let parent = |m: &Value| {
        let wanted =
            m.get("tags").map(|tags| text(tags, "replicatefrom")).filter(|name| names.contains(name));
        if leads(m) { None } else { wanted.or_else(|| root.clone()) }
    };
    let mut left: Vec<Value> = rows;
    let mut tree: Vec<Value> = Vec::new();
    while !left.is_empty() {
        // Two that name each other hang on nobody: the first of them then stands for itself.
        let placed = |m: &Value| {
            let Some(parent) = parent(m) else { return Some((tree.len(), 0)) };
            let above = tree.iter().position(|row| bare(&text(row, "name")) == parent)?;
            let depth = depth(&text(tree.get(above)?, "name")) + 1;
            let below =
                tree.iter().skip(above + 1).take_while(|row| self::depth(&text(row, "name")) >= depth);
            Some((above + 1 + below.count(), depth))
        };
        let found = left.iter().enumerate().find_map(|(index, m)| placed(m).map(|place| (index, place)));
        let (index, (at, depth)) = found.unwrap_or((0, (tree.len(), 0)));
        let mut row = left.remove(index);
        let name = text(&row, "name");
        let branch = if depth == 0 { name } else { format!("{}+ {name}", "  ".repeat(depth - 1)) };
        if let Some(row) = row.as_object_mut() {
            row.insert("name".to_owned(), branch.into());
        }
        tree.insert(at, row);
    }
    if let Some(page) = cluster.as_object_mut() {
        page.insert("members".to_owned(), tree.into());
    }
    cluster
}

fn bare(branch: &str) -> &str {
    branch.trim_start_matches([' ', '+'])
}

fn depth(branch: &str) -> usize {
    branch.find('+').map_or(0, |at| at / 2 + 1)
}

/// The rows of `/history`.
pub fn history(page: &Value) -> String {
    let titles = ["TL", "LSN", "Reason", "Timestamp", "New Leader"].map(str::to_owned);
    let cell = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => Some(value.to_string()),
    };
    let row = |row: &Value| -> Vec<Option<String>> {
        let cells = row.as_array().map_or(&[][..], Vec::as_slice);
        (0..titles.len()).map(|index| cells.get(index).and_then(cell)).collect()
    };
    let all: Vec<_> = page.as_array().map_or(&[][..], Vec::as_slice).iter().map(row).collect();
    rows(&titles, &all)
}

/// Any rows under any titles.
pub fn rows(titles: &[String], rows: &[Vec<Option<String>>]) -> String {
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(titles.iter().map(|title| printable(title)));
    for row in rows {
        table.add_row(row.iter().map(|cell| cell.as_deref().map_or_else(String::new, printable)));
    }
    format!("{table}\n")
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}

/// `max_connections: 100->120`, one a line.
fn pending_reason(member: &Value) -> String {
    let reasons = member.get("pending_restart_reason").and_then(Value::as_object);
    let line = |(name, values): (&String, &Value)| {
        format!("{}: {}->{}", printable(name), text(values, "old_value"), text(values, "new_value"))
    };
    reasons.into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

fn title(cluster: &Value) -> String {
    let identity = match text(cluster, "database_system_identifier") {
        id if id.is_empty() => "uninitialized".to_owned(),
        id => id,
    };
    format!(" Cluster: {} ({identity}) ", text(cluster, "scope"))
}

/// Writes the title over the upper border, at most to its last corner.
fn with_title(table: &str, title: &str) -> String {
    let (border, rest) = table.split_once('\n').unwrap_or((table, ""));
    let room = border.chars().count().saturating_sub(2);
    let shown = title.chars().take(room);
    let tail = border.chars().skip(1 + title.chars().count().min(room));
    let first: String = border.chars().take(1).chain(shown).chain(tail).collect();
    format!("{first}\n{rest}\n")
}

fn footer(cluster: &Value) -> String {
    let mut out = String::new();
    if cluster.get("pause").and_then(Value::as_bool) == Some(true) {
        out.push_str(" Maintenance mode: on\n");
    }
    if let Some(switchover) = cluster.get("scheduled_switchover") {
        out.push_str(&format!(" Switchover scheduled at: {}\n", text(switchover, "at")));
        for (key, label) in [("from", "from"), ("to", "  to")] {
            if switchover.get(key).is_some() {
                out.push_str(&format!("                    {label}: {}\n", text(switchover, key)));
            }
        }
    }
    if let Some(age) = cluster.get("stale_seconds") {
        out.push_str(&format!(" The store has not answered for {age} s: this is the last known state\n"));
    }
    out
}

/// Whether the host column shows ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ports {
    Hidden,
    Shown,
}

/// Ports are shown when one of them is unusual, or when they are what tells members apart.
fn port_display(rows: &[Value]) -> Ports {
    let unusual = rows.iter().any(|m| m.get("port").and_then(Value::as_u64).is_some_and(|p| p != USUAL_PORT));
    let hosts: std::collections::BTreeSet<_> = rows.iter().map(|m| text(m, "host")).collect();
    if unusual || hosts.len() < rows.len() { Ports::Shown } else { Ports::Hidden }
}

fn host(member: &Value, ports: Ports) -> String {
    let host = text(member, "host");
    match (ports, member.get("port")) {
        (Ports::Shown, Some(port)) if host.contains(':') => format!("[{host}]:{port}"),
        (Ports::Shown, Some(port)) => format!("{host}:{port}"),
        (Ports::Shown, None) | (Ports::Hidden, _) => host,
    }
}

/// A field as text, empty when it is absent. Control characters go: a name from the network must not steer a terminal.
fn text(object: &Value, key: &str) -> String {
    let text = match object.get(key) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    text.chars().filter(|c| !c.is_control()).collect()
}

/// A number of bytes in whole megabytes, rounded; a word (`unknown`) stays a word.
fn megabytes(member: &Value, key: &str) -> String {
    member.get(key).and_then(Value::as_u64).map_or_else(
        || text(member, key),
        |bytes| (bytes.saturating_add(MEGABYTE / 2) / MEGABYTE).to_string(),
    )
}

/// `quorum_standby` as `Quorum Standby`.
fn title_case(role: &str) -> String {
    let word = |word: &str| {
        let mut chars = word.chars();
        chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
    };
    role.split('_').map(word).collect::<Vec<_>>().join(" ")
}

fn tags(member: &Value) -> String {
    let tags = member.get("tags").and_then(Value::as_object);
    let pairs = tags.into_iter().flatten().map(|(name, value)| format!("{name}: {value}"));
    let list = pairs.collect::<Vec<_>>().join(", ");
    if list.is_empty() { list } else { format!("{{{list}}}").chars().filter(|c| !c.is_control()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn demo() -> Value {
        json!({
            "members": [
                {"name": "n0", "role": "leader", "state": "running", "api_url": "http://127.0.1.1:8008/patroni",
                 "host": "127.0.1.1", "port": 5432, "timeline": 1},
                {"name": "n1", "role": "quorum_standby", "state": "streaming", "host": "127.0.1.2", "port": 5432,
                 "timeline": 1, "receive_lag": 0, "receive_lsn": "0/3000148", "replay_lag": 2_621_440,
                 "replay_lsn": "0/2D80148", "lag": 0, "lsn": "0/3000148"},
                {"name": "n2", "role": "replica", "state": "creating replica", "host": "127.0.1.3", "port": 5432,
                 "receive_lag": "unknown", "receive_lsn": "unknown", "replay_lag": "unknown",
                 "replay_lsn": "unknown", "lag": "unknown", "lsn": "unknown"},
            ],
            "scope": "demo",
            "database_system_identifier": "7710000000000000001",
        })
    }

    #[test]
    fn members_look_as_in_patronictl() {
        assert_eq!(
            members(&demo()),
            "\
+ Cluster: demo (7710000000000000001) +------------------+----+-------------+---------+------------+---------+
| Member | Host      | Role           | State            | TL | Receive LSN |     Lag | Replay LSN |     Lag |
+--------+-----------+----------------+------------------+----+-------------+---------+------------+---------+
| n0     | 127.0.1.1 | Leader         | running          |  1 |             |         |            |         |
| n1     | 127.0.1.2 | Quorum Standby | streaming        |  1 |   0/3000148 |       0 |  0/2D80148 |       3 |
| n2     | 127.0.1.3 | Replica        | creating replica |    |     unknown | unknown |    unknown | unknown |
+--------+-----------+----------------+------------------+----+-------------+---------+------------+---------+
"
        );
    }

    #[test]
    fn rare_columns_appear_with_their_first_value() {
        let mut cluster = demo();
        assert!(!members(&cluster).contains("Tags"));
        cluster["members"][2]["tags"] = json!({"nofailover": true});
        cluster["members"][0]["pending_restart"] = json!(true);
        let text = members(&cluster);
        assert!(text.contains("| Pending restart | Tags "), "{text}");
        assert!(text.contains("{nofailover: true}"), "{text}");
    }

    #[test]
    fn ports_are_shown_when_they_tell_members_apart() {
        let mut cluster = demo();
        assert!(!members(&cluster).contains("127.0.1.1:5432"));
        cluster["members"][1]["host"] = json!("127.0.1.1");
        assert!(members(&cluster).contains("| 127.0.1.1:5432 |"));
        cluster["members"][1]["host"] = json!("2001:db8::7");
        cluster["members"][1]["port"] = json!(5433);
        assert!(members(&cluster).contains("| [2001:db8::7]:5433 |"));
    }

    #[test]
    fn the_footer_tells_what_concerns_the_whole_cluster() {
        let mut cluster = demo();
        cluster["pause"] = json!(true);
        cluster["scheduled_switchover"] = json!({"at": "2026-12-01T03:00:00+00:00", "from": "n0"});
        cluster["stale_seconds"] = json!(42);
        let text = members(&cluster);
        let footer: Vec<_> = text.lines().skip_while(|line| !line.starts_with(' ')).collect();
        assert_eq!(
            footer,
            [
                " Maintenance mode: on",
                " Switchover scheduled at: 2026-12-01T03:00:00+00:00",
                "                    from: n0",
                " The store has not answered for 42 s: this is the last known state",
            ]
        );
    }

    #[test]
    fn an_empty_cluster_and_a_hostile_name_do_no_harm() {
        let empty = members(
            &json!({"members": [], "scope": "a-scope-that-is-longer-than-the-empty-table-can-hold-in-its-border-whatever-it-does"}),
        );
        assert!(empty.starts_with("+ Cluster: a-scope"), "{empty}");
        assert_eq!(
            empty.lines().map(|l| l.chars().count()).max(),
            empty.lines().map(|l| l.chars().count()).min()
        );
        let mut cluster = demo();
        cluster["members"][0]["name"] = json!("n0\u{1b}[2J");
        assert!(!members(&cluster).contains('\u{1b}'));
        assert!(!members(&Value::Null).is_empty());
    }

    #[test]
    fn a_tree_hangs_each_member_below_the_one_that_it_streams_from() {
        let row = |name: &str, role: &str, from: Option<&str>| json!({"name": name, "role": role, "tags": from.map(|from| json!({"replicatefrom": from}))});
        let cluster = json!({"members": [
            row("n0", "replica", Some("n3")), row("n1", "leader", Some("n0")), row("n2", "replica", None),
            row("n3", "replica", None), row("n4", "replica", Some("nobody")),
        ]});
        let tree = as_tree(&cluster);
        let names: Vec<&str> =
            tree["members"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["n1", "+ n2", "+ n3", "  + n0", "+ n4"]);
        let circle = json!({"members": [row("a", "replica", Some("b")), row("b", "replica", Some("a"))]});
        let rows = as_tree(&circle)["members"].as_array().unwrap().len();
        assert_eq!(rows, 2, "nobody is lost");
    }

    #[test]
    fn history_and_reasons_are_shown_in_rows() {
        let page = json!([
            [1, 67_109_616_u64, "no recovery target specified", "2026-11-20T15:56:07+00:00", "n1"],
            [2, 5, ""]
        ]);
        let text = history(&page);
        assert!(text.contains("67109616") && text.contains("New Leader") && text.contains("| n1"), "{text}");
        let member =
            json!({"pending_restart_reason": {"max_connections": {"old_value": "100", "new_value": "120"}}});
        assert_eq!(pending_reason(&member), "max_connections: 100->120");
    }
}
