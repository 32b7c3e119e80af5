//! `/openapi.json`: the API described for programs that read descriptions.
//!
//! Invariant: what is described is what the routes answer; `tests/api` asks every path of it and compares.

use serde_json::{Map, Value, json};

/// The health checks, and when each says 200. A path that contains one of these words is that check, as with Patroni.
const CHECKS: &[(&str, &str)] = &[
    ("/", "It leads and takes writes: the same as /primary"),
    ("/primary", "It leads and takes writes"),
    ("/master", "It leads and takes writes: an old name of /primary"),
    ("/read-write", "It leads and takes writes: another name of /primary"),
    ("/leader", "It leads, the primary or a standby cluster's leader"),
    ("/standby-leader", "It leads a standby cluster"),
    ("/replica", "It is a replica that takes reads, without the tag noloadbalance"),
    ("/read-only", "It takes reads, the leader too"),
    ("/synchronous", "It is a synchronous replica"),
    ("/read-only-sync", "It leads, or is a synchronous replica"),
    ("/quorum", "It is a replica of the quorum"),
    ("/read-only-quorum", "It leads, or is a replica of the quorum"),
    ("/asynchronous", "It is a replica that commits do not wait for"),
    ("/health", "PostgreSQL runs"),
];

/// The document.
pub fn document() -> Value {
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "pgherd",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "One node of a highly available PostgreSQL cluster, in the words of Patroni's REST API. \
                Every read is answered from the node's memory. What changes something is open to members of the cluster, and \
                to others as RESTAPI_USERNAME and RESTAPI_PASSWORD say.",
            "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" }
        },
        "paths": paths(),
        "components": { "schemas": schemas(), "securitySchemes": { "basic": { "type": "http", "scheme": "basic" } } }
    })
}

fn paths() -> Map<String, Value> {
    let mut paths = Map::new();
    for (path, when) in CHECKS {
        paths.insert((*path).to_owned(), json!({ "get": check(when) }));
    }
    for (path, methods) in [
        ("/liveness", json!({ "get": bare("Whether the loop of this node moves", &[]) })),
        (
            "/readiness",
            json!({ "get": bare("Whether the node leads, or follows closely enough", &[LAG, MODE]) }),
        ),
        ("/patroni", json!({ "get": page("This node, whatever its health", "Member") })),
        ("/cluster", json!({ "get": page("Every member, and what is scheduled", "Cluster") })),
        ("/history", json!({ "get": page("The timelines, and who began them", "History") })),
        (
            "/why",
            json!({ "get": stored("What was decided and on what, and what would follow if the primary died now", "Nothing was decided here yet") }),
        ),
        ("/metrics", json!({ "get": metrics() })),
        ("/openapi.json", json!({ "get": page("This document", "Object") })),
        ("/config", config()),
        ("/failsafe", failsafe()),
        ("/switchover", switchover()),
        (
            "/failover",
            json!({ "post": action("Make a member the primary although there is none", "Failover", &[200, 202, 400, 412, 422, 503]) }),
        ),
        ("/restart", restart()),
        ("/reload", json!({ "post": bodiless("Read the configuration again", &[202, 503]) })),
        (
            "/reinitialize",
            json!({ "post": action("Copy the leader's data anew", "Reinitialize", &[200, 400, 503]) }),
        ),
    ] {
        paths.insert(path.to_owned(), methods);
    }
    paths
}

// ---- reading

const LAG: &str = "lag";
const MODE: &str = "mode";

fn check(when: &str) -> Value {
    json!({
        "summary": when,
        "parameters": [query(LAG), query("replication_state")],
        "responses": {
            "200": answer("It does", "application/json", &reference("Member")),
            "503": answer("It does not, or cannot vouch for it", "application/json", &reference("Member"))
        }
    })
}

fn query(name: &str) -> Value {
    let (schema, description) = match name {
        LAG => (
            json!({ "type": "string" }),
            "How far behind a replica may be: bytes, or with a unit such as 16MB",
        ),
        MODE => (json!({ "type": "string" }), "write: received WAL counts; anything else: replayed WAL does"),
        _ => (json!({ "type": "string" }), "How a replica gets its WAL, such as streaming"),
    };
    json!({ "name": name, "in": "query", "required": false, "schema": schema, "description": description })
}

fn bare(summary: &str, filters: &[&str]) -> Value {
    let filters: Vec<Value> = filters.iter().map(|name| query(name)).collect();
    json!({
        "summary": summary,
        "parameters": filters,
        "responses": { "200": { "description": "It does" }, "503": { "description": "It does not" } }
    })
}

fn page(summary: &str, schema: &str) -> Value {
    json!({ "summary": summary, "responses": { "200": answer("The page", "application/json", &reference(schema)) } })
}

/// A page of the store's, which may have none.
fn stored(summary: &str, absent: &str) -> Value {
    json!({
        "summary": summary,
        "responses": {
            "200": answer("The page", "application/json", &reference("Object")),
            "502": said(absent)
        }
    })
}

fn metrics() -> Value {
    let text = json!({ "type": "string" });
    json!({
        "summary": "Patroni's metrics, and those of our own",
        "responses": { "200": answer("In Prometheus' text format", "text/plain", &text) }
    })
}

// ---- changing

fn config() -> Value {
    json!({
        "get": stored("The dynamic configuration", "There is none, or none is known here yet"),
        "patch": change("Change keys of the dynamic configuration; null removes one", &[400, 409, 422, 503]),
        "put": change("Replace the dynamic configuration", &[400, 409, 422, 502, 503])
    })
}

/// A change of the configuration, which answers with what came of it.
fn change(summary: &str, refused: &[u16]) -> Value {
    let now = answer("The configuration as it is now", "application/json", &reference("Object"));
    operation(summary, Some("Change"), &[("200".to_owned(), now)], refused)
}

fn failsafe() -> Value {
    json!({
        "get": stored("Who must agree before a primary goes on without the store", "Failsafe mode is off"),
        "post": action(
            "A leader without the store asks this member to promise that it will not take its place",
            "Failsafe",
            &[200, 400, 500, 502, 503],
        ),
        "delete": action(
            "A leader that not everybody has answered so takes that question back",
            "Failsafe",
            &[200, 400, 404, 503],
        ),
    })
}

fn switchover() -> Value {
    json!({
        "post": action("Make a replica the primary, in order and without loss, now or at a time", "Switchover",
            &[200, 202, 400, 412, 422, 503]),
        "delete": bodiless("Take a scheduled switchover back", &[200, 404, 409, 503])
    })
}

fn restart() -> Value {
    json!({
        "post": action("Restart PostgreSQL of this node, now or at a time", "Restart", &[200, 202, 400, 409, 422, 500, 503]),
        "delete": bodiless("Take a scheduled restart back", &[200, 404, 503])
    })
}

fn action(summary: &str, schema: &str, codes: &[u16]) -> Value {
    operation(summary, Some(schema), &[], codes)
}

fn bodiless(summary: &str, codes: &[u16]) -> Value {
    operation(summary, None, &[], codes)
}

/// A change: what anybody can be told, these answers, and these codes with a sentence.
fn operation(summary: &str, body: Option<&str>, answers: &[(String, Value)], codes: &[u16]) -> Value {
    let always: &[u16] = &[401, 403];
    let of_bodies: &[u16] = if body.is_some() { &[408, 411, 413] } else { &[] };
    let all = codes.iter().chain(always).chain(of_bodies);
    let sentences = all.map(|code| (code.to_string(), said(meaning(*code))));
    let responses: Map<String, Value> = sentences.chain(answers.iter().cloned()).collect();
    let mut operation = Map::new();
    operation.insert("summary".to_owned(), summary.into());
    operation.insert("responses".to_owned(), responses.into());
    operation.insert("security".to_owned(), json!([{}, { "basic": [] }]));
    if let Some(schema) = body {
        let needed = matches!(schema, "Switchover" | "Failover" | "Failsafe" | "Change");
        let content = json!({ "application/json": { "schema": reference(schema) } });
        operation.insert("requestBody".to_owned(), json!({ "required": needed, "content": content }));
    }
    operation.into()
}

fn meaning(code: u16) -> &'static str {
    match code {
        200 => "Done",
        202 => "It will be done",
        400 => "The request cannot be understood",
        401 => "A name and a password are asked for",
        403 => "Not from there",
        404 => "There is none",
        408 => "The body did not come",
        409 => "Somebody was faster",
        411 => "The body's length is asked for",
        412 => "It cannot be done now",
        413 => "The body is too long",
        422 => "It is understood and cannot be",
        502 => "The store does not answer",
        _ => "It failed, or is not possible now",
    }
}

// ---- shapes

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn answer(description: &str, media: &str, schema: &Value) -> Value {
    json!({ "description": description, "content": { media: { "schema": schema } } })
}

/// A sentence.
fn said(description: &str) -> Value {
    answer(description, "text/html", &json!({ "type": "string" }))
}

/// What counts as yes and no: Patroni's words, too.
fn insistence() -> Value {
    json!({ "anyOf": [{ "type": "boolean", "nullable": true },
        { "type": "integer", "enum": [0, 1] }, { "type": "string" }] })
}

fn schemas() -> Value {
    let [text, number, flag] = ["string", "integer", "boolean"].map(|kind| json!({ "type": kind }));
    let name = json!({ "type": "string", "minLength": 1 });
    let time = json!({ "type": "string", "format": "date-time" });
    // An empty one is as good as none.
    let moment = json!({ "anyOf": [time, { "type": "string", "maxLength": 0, "nullable": true }] });
    let maybe = json!({ "type": "string", "nullable": true });
    let closed = |properties: Value, required: &[&str]| json!({ "type": "object", "properties": properties, "additionalProperties": false, "required": required });
    json!({
        "Object": { "type": "object" },
        "Change": { "type": "object", "minProperties": 1 },
        "History": { "type": "array", "items": { "type": "array", "minItems": 3, "items": {} } },
        "Member": {
            "type": "object",
            "required": ["state", "role", "dcs_last_seen", "patroni"],
            "properties": {
                "state": text, "role": text, "server_version": number, "timeline": number,
                "postmaster_start_time": text, "database_system_identifier": text, "dcs_last_seen": number,
                "cluster_unlocked": flag, "pause": flag, "pending_restart": flag, "sync_standby": flag,
                "quorum_standby": flag, "replication_state": text, "xlog": { "type": "object" },
                "replication": { "type": "array", "items": { "type": "object" } }, "tags": { "type": "object" },
                "patroni": {
                    "type": "object", "required": ["version", "scope", "name"],
                    "properties": { "version": text, "scope": text, "name": text }
                },
                "pgherd": { "type": "object" }
            }
        },
        "Cluster": {
            "type": "object",
            "required": ["members", "scope"],
            "properties": {
                "scope": text, "pause": flag, "scheduled_switchover": { "type": "object" },
                "members": { "type": "array", "items": {
                    "type": "object",
                    "required": ["name", "role", "state", "api_url"],
                    "properties": {
                        "name": text, "role": text, "state": text, "api_url": text, "host": text, "port": number,
                        "timeline": number, "lag": { "oneOf": [number, text] }, "tags": { "type": "object" }
                    }
                } }
            }
        },
        "Switchover": closed(json!({ "leader": name, "candidate": maybe, "member": maybe, "scheduled_at": moment }), &["leader"]),
        // With a leader it is a switchover.
        "Failover": { "type": "object", "additionalProperties": false,
            "properties": { "candidate": maybe, "member": maybe, "leader": maybe, "scheduled_at": moment },
            "anyOf": [
                { "required": ["candidate"] }, { "required": ["member"] }, { "required": ["leader"] }
            ] },
        "Failsafe": { "type": "object", "required": ["name"], "properties": {
            "name": name, "conn_url": { "type": "string" }, "api_url": { "type": "string" },
            "slots": { "type": "object" }, "pgherd_ttl": { "type": "integer", "minimum": 0, "maximum": 300 },
            "pgherd_to": { "type": "string" }, "pgherd_question": { "type": "integer", "minimum": 0 }
        } },
        "Restart": { "type": "object", "additionalProperties": false, "properties": {
            "schedule": time, "role": { "type": "string", "enum": ["primary", "standby_leader", "replica"] },
            "postgres_version": { "type": "string", "pattern": r"^[0-9]{1,2}\.[0-9]{1,2}(\.[0-9]{1,2})?$" },
            "restart_pending": flag, "timeout": { "type": "integer", "minimum": 1, "maximum": 86400 }
        } },
        "Reinitialize": { "type": "object", "properties": { "force": insistence(), "from_leader": flag } }
    })
}
