//! Reading a schedule: every word that a person may write for something, and what is said about a word that is none.

use pgherd::ha::watchdog::Need;
use serde_json::Value;

use crate::faults::{ACTIONS, Fault, MOST_NODES, Mode, Schedule, Voters};

/// Longer it cannot last: an hour, in milliseconds.
const LONGEST: u64 = 3_600_000;
/// The calm comes so long after the last event, unless a schedule says when, and never before a minute.
const AFTER_THE_LAST: u64 = 10_000;

/// What is read as another word.
const SYNONYMS: &[(&str, &[&str])] = &[
    ("crash-node", &["kill-node", "crash", "kill", "power-off", "poweroff"]),
    ("start-node", &["start", "boot", "boot-node", "power-on"]),
    ("crash-postgres", &["kill-postgres", "crash-pg", "kill-pg", "crash-postmaster", "kill-postmaster"]),
    ("crash-etcd", &["kill-etcd"]),
    ("kill-agent", &["crash-agent"]),
    ("freeze", &["freeze-agent", "sigstop", "freeze-node"]),
    ("thaw", &["thaw-agent", "sigcont", "unfreeze", "thaw-node"]),
    ("pause", &["pause-node", "suspend", "pause-machine"]),
    ("resume", &["resume-node", "unpause", "resume-machine"]),
    ("stop", &["sigterm", "stop-node", "shutdown", "terminate"]),
    ("wipe", &["wipe-node", "wipe-volume", "lose-volume"]),
    ("isolate", &["isolate-node"]),
    ("rejoin", &["unisolate", "rejoin-node", "heal-all"]),
    ("partition", &["cut-both", "split"]),
    ("reunite", &["heal-both", "unpartition", "unsplit"]),
    ("store-cut", &["cut-store"]),
    ("store-mute", &["mute-store"]),
    ("store-heal", &["heal-store"]),
    ("disk-full", &["fill-disk"]),
    ("disk-free", &["free-disk"]),
    ("hang", &["hang-postgres"]),
    ("unhang", &["unhang-postgres"]),
    ("lose-wal", &["wal-lost"]),
    ("reinitialize", &["reinit"]),
    ("restart", &["restart-postgres"]),
    ("clock-step", &["clock-jump", "step-clock"]),
    ("tag", &["set-tag"]),
];

/// What an event can be, for whoever has written something else.
const EVENTS: &str = "crash-node, start-node, crash-postgres, crash-etcd, kill-agent, freeze, thaw, pause, resume, stop, wipe, cut, heal, \
     partition, reunite, isolate, rejoin, store-cut, store-mute, store-heal, store-down, store-up, store-election, slow, disk-full, \
     disk-free, disk-slow, disk-fast, hang, unhang, lose-wal, clock-step, crash-at, cut-at, mute-at, api-down, api-up, api-hide, \
     api-show, remote-promote, remote-follow, write, read, switchover, restart, reinitialize, set, tag, served, differed, was-reset \
     or store-answers is expected after a time";

impl Schedule {
    /// Reads the text that [`Schedule::to_text`] writes, and what people write; the error names every line that is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut schedule = Self::plain(0);
        let (mut events, mut tags, mut errors, mut calm) = (Vec::new(), Vec::new(), Vec::new(), None);
        let mut settings: Vec<String> = Vec::new();
        for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let words = words_of(line);
            let Some((first, rest)) = words.split_first() else { continue };
            if let Some(at) = time(first) {
                events.push((i + 1, at, rest.to_vec()));
                continue;
            }
            let read = schedule.setting(first, rest).and_then(|()| {
                let again = settings.contains(first) && !is_of_a_node(first);
                settings.push(first.clone());
                if again { Err("it is set twice".to_owned()) } else { Ok(()) }
            });
            if first == "calm" {
                calm = Some(schedule.calm);
            }
            tags.resize(schedule.tags.len(), i + 1);
            errors.extend(read.err().map(|why| (i + 1, format!("{}: {why}", words.join(" ")))));
        }
        for (line, at, words) in events {
            match schedule.events(&words) {
                Err(why) => errors.push((line, format!("{}: {why}", words.join(" ")))),
                Ok(_) if calm.is_some_and(|calm| at > calm) => {
                    let what = words.join(" ");
                    errors.push((line, format!("{what}: it comes after the calm at {} ms", schedule.calm)));
                }
                Ok(faults) => schedule.faults.extend(faults.into_iter().map(|fault| (at, fault))),
            }
        }
        errors.extend(schedule.tags.iter().zip(tags).filter_map(|(tag, line)| {
            let fault = Fault::Tag(tag.clone());
            schedule.misplaced(&fault).map(|why| (line, format!("{fault}: {why}")))
        }));
        let last = schedule.faults.iter().map(|(at, _)| *at).max().unwrap_or(0);
        schedule.calm = calm.unwrap_or_else(|| schedule.calm.max(last + AFTER_THE_LAST));
        schedule.faults.sort_by_key(|(at, _)| *at);
        errors.sort();
        let errors: Vec<_> = errors.into_iter().map(|(line, what)| format!("line {line}: {what}")).collect();
        if errors.is_empty() { Ok(schedule) } else { Err(errors.join("\n")) }
    }

    /// What one line asks for: the same of several nodes is one event of each.
    fn events(&self, words: &[String]) -> Result<Vec<Fault>, String> {
        let mut faults = Vec::new();
        let lines = several(words, self.nodes);
        if lines.is_empty() {
            return Err("two different nodes are expected".into());
        }
        for words in lines {
            for fault in whole(&words)? {
                if let Some(why) = self.misplaced(&fault) {
                    return Err(why);
                }
                faults.push(fault);
            }
        }
        Ok(faults)
    }

    fn setting(&mut self, key: &str, values: &[String]) -> Result<(), String> {
        if is_of_a_node(key) {
            self.tags.push(tag(values)?);
            return Ok(());
        }
        let [value] = values else {
            return Err(if known(key) { "one value is expected" } else { A_LINE }.to_owned());
        };
        match key {
            "seed" => self.seed = number(Some(value))?,
            "nodes" => self.nodes = within(value, 1, MOST_NODES as u64)? as usize,
            "ttl" => self.ttl = within(value, 4, 120)?,
            "calm" => self.calm = time(value).ok_or("a time is expected: 60000, 60000ms or 60s")?,
            "deadman" => self.deadman = switch(value)?,
            "watchdog" => {
                self.watchdog = match value.as_str() {
                    "off" => Need::Off,
                    "automatic" => Need::Automatic,
                    "required" => Need::Required,
                    _ => return Err("off, automatic or required is expected".into()),
                }
            }
            "clients" => self.clients = switch(value)?,
            "standby" | "standby_cluster" => self.standby = switch(value)?,
            "failsafe" | "failsafe_mode" => self.failsafe = switch(value)?,
            "synchronous_node_count" => {
                self.synchronous_node_count = within(value, 1, MOST_NODES as u64)? as u32;
            }
            "mode" | "synchronous_mode" => self.mode = mode(value)?,
            "voters" => {
                self.voters = match value.as_str() {
                    "nodes" => Voters::Nodes,
                    "ours" => Voters::Ours,
                    "outside" => Voters::Outside,
                    _ => return Err("nodes, ours or outside is expected".into()),
                }
            }
            _ => return Err(A_LINE.into()),
        }
        Ok(())
    }
}

const A_LINE: &str = "a time (12000, 12000ms, 12s, 2m; at most an hour) or a setting (seed, nodes, mode, ttl, deadman, watchdog, clients, voters, \
     standby, failsafe, synchronous_node_count, tag, calm) is expected first";

fn known(key: &str) -> bool {
    !matches!(Schedule::plain(0).setting(key, &[String::new()]), Err(why) if why == A_LINE)
}

fn is_of_a_node(key: &str) -> bool {
    matches!(key, "tag" | "tags")
}

/// The words of a line: `12s: kill n0`, `at 12s kill n0` and `ttl = 10` say what `12s kill n0` and `ttl 10` do.
fn words_of(line: &str) -> Vec<String> {
    let line = line.split('#').next().unwrap_or("").to_lowercase().replace('=', " ");
    let mut words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
    if words.first().is_some_and(|first| first == "at" || first == "@") {
        words.remove(0);
    }
    if let Some(first) = words.first_mut() {
        *first = first.trim_start_matches('@').trim_end_matches(':').to_owned();
    }
    words
}

/// `kill all` and `kill n0,n1`: each of them. Two lists: each of the one with each of the other.
fn several(words: &[String], nodes: usize) -> Vec<Vec<String>> {
    let mut lines: Vec<Vec<String>> = vec![Vec::new()];
    let event = words.first().map(|word| canonical(word)).unwrap_or_default();
    let everybody = words.len() == 1 && (event == "rejoin" || event == "heal");
    let all = ["all".to_owned()];
    let more: &[String] = if everybody { &all } else { &[] };
    for (i, word) in words.iter().chain(more).enumerate() {
        let each: Vec<String> = match word.as_str() {
            "all" | "*" if i > 0 => (0..nodes).map(|n| format!("n{n}")).collect(),
            list if i > 0 && list.contains(',') => list.split(',').map(str::to_owned).collect(),
            one => vec![one.to_owned()],
        };
        let with = |line: &Vec<String>| {
            let line = line.clone();
            each.clone().into_iter().map(move |word| line.iter().cloned().chain([word]).collect())
        };
        lines = lines.iter().flat_map(with).collect();
    }
    // Of two lists that have one in common it is not meant with itself.
    let one = lines.len() == 1;
    lines.retain(|line| one || line.get(1).is_none_or(|first| line.get(2) != Some(first)));
    lines
}

/// What a line with one node in each place asks for. Every word must belong to it.
fn whole(words: &[String]) -> Result<Vec<Fault>, String> {
    let both = match words.first().map(|word| canonical(word)).as_deref() {
        Some("partition") => Some("cut"),
        Some("reunite") => Some("heal"),
        // Whoever is cut off from everybody is healed by the same word.
        Some("heal") if words.len() == 2 => return whole(&["rejoin".to_owned(), words[1].clone()]),
        _ => None,
    };
    let Some(one_way) = both else { return Ok(vec![single(words)?]) };
    match &words[1..] {
        [n] => {
            let word = if one_way == "cut" { "isolate" } else { "rejoin" };
            Ok(vec![single(&[word.to_owned(), n.clone()])?])
        }
        [a, b] => {
            let way = |from: &String, to: &String| single(&[one_way.to_owned(), from.clone(), to.clone()]);
            Ok(vec![way(a, b)?, way(b, a)?])
        }
        _ => Err("one node is expected, or two".into()),
    }
}

fn single(words: &[String]) -> Result<Fault, String> {
    let fault = event(words)?;
    if matches!(&fault, Fault::Cut(a, b) | Fault::Heal(a, b) if a == b) {
        return Err("two different nodes are expected".into());
    }
    let all = fault.to_string().split_whitespace().count() == words.len();
    // Who says that a tag is set has said all.
    let short = matches!(fault, Fault::Tag(_)) && words.len() == 3;
    if all || short { Ok(fault) } else { Err(format!("nothing is expected after \"{fault}\"")) }
}

/// The word that README.md uses.
fn canonical(word: &str) -> String {
    let word = word.replace('_', "-");
    let known = SYNONYMS.iter().find(|(_, others)| others.contains(&word.as_str()));
    known.map_or(word, |(name, _)| (*name).to_owned())
}

fn event(words: &[String]) -> Result<Fault, String> {
    let node = |i: usize| node(words.get(i));
    Ok(match words.first().map(|word| canonical(word)).unwrap_or_default().as_str() {
        "crash-node" => Fault::CrashNode(node(1)?),
        "start-node" => Fault::StartNode(node(1)?),
        "crash-postgres" => Fault::CrashPostgres(node(1)?),
        "crash-etcd" => Fault::CrashEtcd(node(1)?),
        "kill-agent" => Fault::KillAgent(node(1)?),
        "freeze" => Fault::Freeze(node(1)?),
        "thaw" => Fault::Thaw(node(1)?),
        "pause" => Fault::Pause(node(1)?),
        "resume" => Fault::Resume(node(1)?),
        "stop" => Fault::Stop(node(1)?),
        "wipe" => Fault::Wipe(node(1)?),
        "cut" => Fault::Cut(node(1)?, node(2)?),
        "heal" => Fault::Heal(node(1)?, node(2)?),
        "isolate" => Fault::Isolate(node(1)?),
        "rejoin" => Fault::Rejoin(node(1)?),
        "store-cut" => Fault::StoreCut(node(1)?),
        "store-mute" => Fault::StoreMute(node(1)?),
        "store-heal" => Fault::StoreHeal(node(1)?),
        "store-down" => Fault::StoreDown,
        "store-up" => Fault::StoreUp,
        "store-election" => Fault::StoreElection,
        "store-answers" => Fault::StoreAnswers,
        "served" => Fault::Served,
        "slow" => Fault::Slow(node(1)?, milliseconds(words.get(2))?),
        "write" => Fault::Write(node(1)?),
        "read" => Fault::Read(node(1)?),
        "set" => setting(words.get(1), words.get(2))?,
        "tag" => Fault::Tag(tag(&words[1..])?),
        "clock-step" => Fault::ClockStep(node(1)?, step(words.get(2))?),
        "crash-at" => Fault::CrashAt(node(1)?, action(words.get(2))?),
        "cut-at" => Fault::CutAt(node(1)?, action(words.get(2))?),
        "mute-at" => Fault::MuteAt(node(1)?, action(words.get(2))?),
        "differed" => Fault::Differed,
        "was-reset" => Fault::WasReset,
        "disk-full" => Fault::DiskFull(node(1)?),
        "disk-free" => Fault::DiskFree(node(1)?),
        "disk-slow" => Fault::DiskSlow(node(1)?),
        "disk-fast" => Fault::DiskFast(node(1)?),
        "hang" => Fault::Hang(node(1)?),
        "unhang" => Fault::Unhang(node(1)?),
        "lose-wal" => Fault::LoseWal(node(1)?),
        "api-down" => Fault::ApiDown,
        "api-up" => Fault::ApiUp,
        "api-hide" => Fault::ApiHide(node(1)?),
        "api-show" => Fault::ApiShow(node(1)?),
        "switchover" => switchover(&words[1..])?,
        "restart" => Fault::Restart(node(1)?),
        "reinitialize" => Fault::Reinitialize(node(1)?),
        "remote-promote" => Fault::RemotePromote,
        "remote-follow" => Fault::RemoteFollow,
        "" => return Err(format!("nothing happens: {EVENTS}")),
        _ => return Err(format!("it is no event: {EVENTS}")),
    })
}

fn node(word: Option<&String>) -> Result<usize, String> {
    let word = word.ok_or("a node is expected after it (n0, n1, ...)")?;
    let digits = word.strip_prefix("node").or_else(|| word.strip_prefix('n')).unwrap_or(word);
    digits.parse().map_err(|_| format!("{word} is no node: n0, n1, ... is expected"))
}

/// `[NODE] [at TIME]`.
fn switchover(words: &[String]) -> Result<Fault, String> {
    let at = words.iter().position(|word| word == "at");
    let (to, rest) = words.split_at(at.unwrap_or(words.len()));
    let to = to.first().map(|word| node(Some(word))).transpose()?;
    match rest.get(1) {
        None if rest.is_empty() => Ok(Fault::Switchover(to)),
        Some(when) => Ok(Fault::Scheduled(to, time(when).ok_or("a time is expected after at")?)),
        None => Err("a time is expected after at".into()),
    }
}

fn mode(word: &str) -> Result<Mode, String> {
    let word = match word {
        "priority" | "true" => "on",
        "async" | "false" => "off",
        other => other,
    };
    let all = [Mode::Quorum, Mode::Priority, Mode::Strict, Mode::Off];
    let known = all.into_iter().find(|m| m.word() == word);
    known.ok_or_else(|| "quorum, on, strict or off is expected".to_owned())
}

fn action(word: Option<&String>) -> Result<String, String> {
    let known = word.map(|w| w.replace(['-', '_'], "")).filter(|w| ACTIONS.contains(&w.as_str()));
    known.ok_or_else(|| format!("one of {} is expected", ACTIONS.join(", ")))
}

/// `n1 nofailover`, `n1 nofailover off`, `n1 failover_priority 2`, `n1 replicatefrom n2`.
fn tag(words: &[String]) -> Result<crate::faults::Tag, String> {
    let n = node(words.first())?;
    let tag = words.get(1).map(|word| word.replace('-', "_")).unwrap_or_default();
    let value = words.get(2);
    if words.len() > 3 {
        return Err("one tag and its value are expected".into());
    }
    let value = match tag.as_str() {
        "nofailover" | "nosync" | "clonefrom" => Value::from(value.map_or(Ok(true), |value| switch(value))?),
        "failover_priority" | "sync_priority" => Value::from(number(value)?),
        "replicatefrom" if value.is_some_and(|value| matches!(value.as_str(), "none" | "off")) => Value::Null,
        "replicatefrom" => format!("n{}", node(value)?).into(),
        _ => {
            return Err(
                "nofailover, nosync, clonefrom, failover_priority, sync_priority or replicatefrom is \
                        expected after the node"
                    .into(),
            );
        }
    };
    Ok((n, tag, value))
}

fn number(word: Option<&String>) -> Result<u64, String> {
    word.and_then(|w| w.parse().ok()).ok_or_else(|| "a whole number is expected".to_owned())
}

fn milliseconds(word: Option<&String>) -> Result<u64, String> {
    word.and_then(|word| time(word)).ok_or_else(|| "milliseconds are expected".to_owned())
}

/// Seconds, forward or back: `3600`, `-1h`.
fn step(word: Option<&String>) -> Result<i64, String> {
    let read = |word: &String| {
        let (back, rest) = match word.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, word.trim_start_matches('+')),
        };
        let (digits, unit) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let unit = match unit {
            "" | "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            _ => return None,
        };
        digits.parse::<i64>().ok().filter(|n| *n <= 10_000_000).map(|n| back * n * unit)
    };
    word.and_then(read).ok_or_else(|| "seconds are expected: 3600, -3600, 1h".to_owned())
}

fn within(word: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = word.parse().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| format!("a whole number from {least} to {most} is expected"))
}

/// `12000`, `12000ms`, `12s`, `12.5s`, `2m`, in milliseconds.
fn time(word: &str) -> Option<u64> {
    if let Some(whole) =
        word.strip_suffix("ms").or(Some(word)).filter(|w| w.bytes().all(|b| b.is_ascii_digit()))
    {
        return whole.parse().ok().filter(|ms| *ms <= LONGEST);
    }
    let (digits, unit) = word.split_at(word.find(|c: char| c.is_ascii_alphabetic())?);
    let unit = match unit {
        "s" | "sec" => 1000.0,
        "m" | "min" => 60_000.0,
        "h" => 3_600_000.0,
        _ => return None,
    };
    let ms = digits.parse::<f64>().ok().filter(|n| *n >= 0.0)? * unit;
    (ms <= LONGEST as f64).then_some(ms.round() as u64)
}

/// A change of the dynamic configuration.
fn setting(key: Option<&String>, value: Option<&String>) -> Result<Fault, String> {
    let value = value.ok_or("a setting and its value are expected")?;
    let change = match key.ok_or("a setting and its value are expected")?.as_str() {
        "mode" | "synchronous_mode" => Fault::Set("mode".into(), mode(value)?.word().into()),
        "pause" | "maintenance" => Fault::Set("pause".into(), switch(value)?.into()),
        "failsafe_mode" | "failsafe" => Fault::Set("failsafe_mode".into(), switch(value)?.into()),
        "standby" | "standby_cluster" => Fault::Set("standby".into(), switch(value)?.into()),
        key @ "slots" => Fault::Set(key.into(), switch(value)?.into()),
        key @ "ttl" => Fault::Set(key.into(), within(value, 10, 120)?.into()),
        key @ "synchronous_node_count" => Fault::Set(key.into(), within(value, 1, MOST_NODES as u64)?.into()),
        key @ "maximum_lag_on_failover" => Fault::Set(key.into(), within(value, 0, u64::MAX)?.into()),
        key @ "loop_wait" => Fault::Set(key.into(), within(value, 1, 60)?.into()),
        key @ "retry_timeout" => Fault::Set(key.into(), within(value, 3, 60)?.into()),
        _ => {
            return Err(
                "mode, ttl, pause, failsafe_mode, standby, slots, synchronous_node_count, maximum_lag_on_failover, loop_wait or \
                 retry_timeout is expected"
                    .into(),
            );
        }
    };
    Ok(change)
}

fn switch(value: &str) -> Result<bool, String> {
    match value {
        "on" | "true" | "yes" | "1" => Ok(true),
        "off" | "false" | "no" | "0" => Ok(false),
        _ => Err("on or off is expected".to_owned()),
    }
}
