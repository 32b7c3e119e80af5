//! One line of pg_hba.conf that the store asks for: whether the server would read it, and whether pgherd lets it in.
//!
//! A line that the server cannot read keeps it from starting, so what is doubtful is refused here. What is absent: the
//! meaning of a rule beyond its method; whom it lets in is the administrator's decision.

use std::net::IpAddr;

/// The methods that a rule of the cluster may name. `trust` lets anybody in who can reach the port.
const METHODS: &[&str] = &[
    "scram-sha-256",
    "md5",
    "cert",
    "reject",
    "peer",
    "ident",
    "ldap",
    "radius",
    "pam",
    "bsd",
    "gss",
    "sspi",
    "password",
    "oauth",
];

/// The options that a rule may have.
const OPTIONS: &[&str] = &[
    "clientcert",
    "clientname",
    "compat_realm",
    "delegate_ident_mapping",
    "include_realm",
    "issuer",
    "krb_realm",
    "ldapbasedn",
    "ldapbinddn",
    "ldapbindpasswd",
    "ldapport",
    "ldapprefix",
    "ldapscheme",
    "ldapsearchattribute",
    "ldapsearchfilter",
    "ldapserver",
    "ldapsuffix",
    "ldaptls",
    "ldapurl",
    "map",
    "pam_use_hostname",
    "pamservice",
    "radiusidentifiers",
    "radiusports",
    "radiussecrets",
    "radiusservers",
    "scope",
    "upn_username",
    "validator",
];

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Door {
    /// Whom pg_hba.conf lets in.
    #[default]
    Open,
    /// The superuser over the socket, and standbys.
    Closed,
}

/// What is wrong with a line; `None` when nothing is.
pub(super) fn fault(line: &str) -> Option<String> {
    let Some(words) = words(line) else { return Some("a quote is not closed".to_owned()) };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["local", _database, _user, rest @ ..] => after_address(rest, Socket::Unix),
        ["host" | "hostssl" | "hostnossl" | "hostgssenc" | "hostnogssenc", _database, _user, rest @ ..] => {
            host(rest)
        }
        [kind, ..] => Some(format!("{kind} is no kind of rule, or the line is too short")),
        [] => Some("it is empty".to_owned()),
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Socket {
    Unix,
    Network,
}

fn host(rest: &[&str]) -> Option<String> {
    match rest {
        [address, mask, rest @ ..] if is_address(address) && is_address(mask) => {
            after_address(rest, Socket::Network)
        }
        [address, ..] if is_address(address) => Some(format!("{address} has no mask")),
        [address, rest @ ..] if is_place(address) => after_address(rest, Socket::Network),
        [address, ..] => Some(format!("{address} is no address")),
        [] => Some("the line is too short".to_owned()),
    }
}

fn after_address(rest: &[&str], socket: Socket) -> Option<String> {
    let [method, options @ ..] = rest else { return Some("it names no method".to_owned()) };
    if *method == "trust" {
        return Some("`trust` lets anybody in: only POSTGRES_HBA of a node may say so".to_owned());
    }
    if !METHODS.contains(method) {
        return Some(format!("{method} is no method"));
    }
    let out_of_place = match socket {
        Socket::Unix => matches!(*method, "cert" | "gss" | "sspi"),
        Socket::Network => *method == "peer",
    };
    if out_of_place {
        return Some(format!("{method} does not go with this kind of rule"));
    }
    let known = |option: &&&str| option.split_once('=').is_some_and(|(name, _)| OPTIONS.contains(&name));
    options.iter().find(|option| !known(option)).map(|option| format!("{option} is no option"))
}

fn is_address(word: &str) -> bool {
    word.parse::<IpAddr>().is_ok()
}

/// `all`, a network, or a host's name.
fn is_place(word: &str) -> bool {
    let network = || {
        let (address, bits) = word.split_once('/')?;
        let longest = match address.parse().ok()? {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        bits.parse::<u8>().ok().filter(|bits| *bits <= longest)
    };
    let name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let is_name = word.contains(|c: char| c.is_ascii_alphabetic()) && word.chars().all(name);
    network().is_some() || is_name
}

/// The words of a line; a quoted one may hold blanks. A comment at the end is dropped. `None`: a quote stays open.
fn words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut inside) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' => {
                inside = !inside;
                word.push(c);
            }
            '#' if !inside => break,
            c if c.is_whitespace() && !inside => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    (!inside).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_every_kind_are_let_in() {
        for line in [
            "local all all scram-sha-256",
            "local all \"a user\" peer map=x",
            "host all all 10.0.0.0/8 scram-sha-256 # office",
            "host all all 10.0.0.0 255.0.0.0 md5",
            "hostssl db,other +group ::/0 cert clientcert=verify-full map=m",
            "hostnossl all all all reject",
            "host all all .example.com scram-sha-256",
            "host replication standby samenet scram-sha-256",
        ] {
            assert_eq!(fault(line), None, "{line}");
        }
    }

    #[test]
    fn what_the_server_cannot_read_or_nobody_should_want_is_refused() {
        for line in [
            "",
            "include other.conf",
            "@file",
            "host all all",
            "host all all 10.0.0.0/8",
            "host all all 10.0.0.0 scram-sha-256",
            "host all all 10.0.0.0/33 scram-sha-256",
            "host all all 300.0.0.0/8 scram-sha-256",
            "host all all 10.0.0.0/8 magic",
            "host all all all scram-sha-256 option",
            "host all all all scram-sha-256 magic=1",
            "host all all all peer",
            "local all all trust",
            "local all all cert",
            "local all \"all scram-sha-256",
        ] {
            assert!(fault(line).is_some(), "{line}");
        }
    }
}
