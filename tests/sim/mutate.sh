#!/bin/bash
# Removes one guard of `ha::decide`, `etcd::decide` and their rules after the other, and asks: does anything notice?
#
#   tests/sim/mutate.sh [NAME ...]      all guards, or these; SEEDS=10000, SCRATCH=target/mutants (a copy of the tree; it keeps
#                                       its own build directory)
#
# All mutants are compiled once, into one copy of the tree (`weave.pl`), and `MUTANT=number` says which one a process is. Each is
# shown to the scenarios (etcd's are tests of the library), then to the kept schedules, then to so many seeds, until one of them notices.
#
# One line for each guard: its name and what noticed, or SURVIVED. Exit status 1 when one survived, or when a line of the table below
# no longer changes anything.
set -u
cd "$(dirname "$0")/../.."
SEEDS=${SEEDS:-10000} SCRATCH=${SCRATCH:-target/mutants}

# name | file in src | perl expression
guards() {
    cat <<'TABLE'
fence|ha/decide.rs|s/= fence\(view\)\.filter\(\|_\| !pause::is_on\(view\)\)/= fence(view).filter(|_| false)/
fence-another-leads|ha/decide.rs|s/if let Some\(name\) = other \{/if let Some(name) = other.filter(|_| false) {/
fence-lease-lost|ha/decide.rs|s/if view.lease == Lease::Lost \{/if false {/
fence-lease-end|ha/decide.rs|s/if view.leads\(\) \|\| reclaimable\(view\) \{/if true {/
fence-reclaim-ready|ha/decide.rs|s/=> s.readiness == Readiness::Ready,/=> s.readiness == Readiness::Ready || true,/
lapsed|ha/decide.rs|s/\(harmless && held && /(false \&\& harmless \&\& held \&\& /
stop-gives-way|ha/decide.rs|s/\(Phase::Stopping, _\) => stopping\(view\),/(Phase::Stopping, None) => stopping(view), (Phase::Stopping, Some(job)) => idle(Reason::Busy(job), Wake::Loop),/
compare-gives-way|ha/decide.rs|s/if leaderless\(view\) => serving/if false => serving/
name-unclaimed|ha/decide.rs|s/if view.memory.name == Name::Unclaimed \{/if false {/
wrong-data|ha/decide.rs|s/= wrong_data\(view, snapshot\) \{/= wrong_data(view, snapshot).filter(|_| false) {/
without-store-patience|ha/silence.rs|s/if for_good \{/if true {/
without-store-names|ha/silence.rs|s/if lead::names_are_known\(view\) =>/if true =>/
died-before-promotion|ha/decide.rs|s/DataDir::Cluster\(control\)\) if lineage::was_standby\(control\) =>/DataDir::Cluster(control)) if false \&\& lineage::was_standby(control) =>/
not-leading-any-more|ha/decide.rs|s/if !view.leads\(\) \{\n        return idle/if false {\n        return idle/
crash-loop|ha/decide.rs|s/if n >= lead::FAILED_STARTS && /if false \&\& /
publish-before-write|ha/decide.rs|s/let publish = \(!known\)/let publish = (false \&\& !known)/
initialised-makes-no-cluster|ha/decide.rs|s/Founding::Done => return act\(vec!\[Action::Release\], Reason::NothingToLead\),/Founding::Done => None,/
make-cluster-refused|ha/decide.rs|s/if let Some\(reason\) = adoption::fresh_cluster_refused\(view\) \{/if let Some(reason) = adoption::fresh_cluster_refused(view).filter(|_| false) {/
store-not-ready|ha/decide.rs|s/if snapshot.readiness == Readiness::NotReady \{/if false {/
retake-timeline|ha/race.rs|s/(fn led_since[^}]*?)if timeline < cluster \{/$1if false {/s
paused-start-sync|ha/race.rs|s/closed_by.filter\(\|name\| \*\*name != view.me\)\?/closed_by.filter(|_| false)?/
close-before-first-write|ha/lead.rs|s/close\(view, snapshot\).filter\(\|_\| snapshot.sync.is_none\(\)\)/close(view, snapshot).filter(|_| false)/
declared-is-outdated|ha/remote.rs|s/view.cluster_system_id\(\).or\(view.volume.system_id\).is_some\(\)/view.cluster_system_id().is_some()/
bootstrap-known-cluster|ha/decide.rs|s/Some\(Initialize::Done\(_\)\) => return copy_alone\(view\),/Some(Initialize::Done(_)) => {}/
bootstrap-nofailover|ha/decide.rs|s/if view.rules.tags.failover == super::rules::Failover::Never \{/if false {/
survey-record|ha/adoption.rs|s/(if let Some\(id\) = view.volume.system_id) \{/$1.filter(|_| false) {/
survey-data|ha/adoption.rs|s/if let Some\(\(address, _\)\) = with_data \{/if let Some((address, _)) = with_data.filter(|_| false) {/
survey-silent|ha/adoption.rs|s/\(!silent.is_empty\(\)\).then_some/(false \&\& !silent.is_empty()).then_some/
follow-unreadable|ha/decide.rs|s/if view.volume.system_id != view.cluster_system_id\(\) =>/if false =>/
follow-serving|ha/decide.rs|s/\(Instance::Down, _\) if !serving =>/(Instance::Down, _) if false \&\& !serving =>/
follow-checkpoint|ha/decide.rs|s/m.checkpoint_after_promote == Some\(false\)/false \&\& m.checkpoint_after_promote == Some(false)/
follow-foreign|ha/decide.rs|s/if Some\(control.system_id\) != view.cluster_system_id\(\) =>/if false \&\& Some(control.system_id) != view.cluster_system_id() =>/
follow-wal-removed|ha/decide.rs|s/DataDir::Cluster\(_\)\) if view.memory.upstream_wal == UpstreamWal::Removed =>/DataDir::Cluster(_)) if false =>/
ancestry-current|ha/decide.rs|s/known_ancestry\(view, &source\).filter\(current\)/known_ancestry(view, \&source).filter(|a| current(a) || true)/
ancestry-age|ha/lineage.rs|s/view.now.since\(a.at\) < ANCESTRY_AGE/true/
kin-down|ha/decide.rs|s/match lineage::kin_by_bytes\(view, snapshot, control.reached\(\), ancestry\) \{/match Kin::Same {/
kin-bytes|ha/lineage.rs|s/        Containment::Differs => Kin::Other,/        Containment::Differs => kin(view, snapshot, local, \&asked.leader),/
kin-reached|ha/decide.rs|s/match lineage::kin_by_bytes\(view, snapshot, control.reached\(\), ancestry\) \{/match lineage::kin_by_bytes(view, snapshot, control.timeline, ancestry) {/
kin-running|ha/decide.rs|s/match lineage::kin\(view, snapshot, lineage::standby_timeline\(view, answer\), &source.name\) \{/match Kin::Same {/
lineage|ha/decide.rs|s/match lineage::of_stopped\(control, ancestry\) \{/let _ = control; match Lineage::Part {/
rewind-limit|ha/decide.rs|s/view.n_failures\(Job::Rewind\) >= REWINDS/false/
stalled|ha/decide.rs|s/if !stalled \{/if true {/
starved|ha/decide.rs|s/&& starved\(view\) \{/\&\& (true || starved(view)) {/
names-in-force-at-start|ha/lead.rs|s/if let Some\(names\) = &view.memory.sync_names \{/if let Some(names) = view.memory.sync_names.as_ref().filter(|_| false) {/
names-implied-at-start|ha/lead.rs|s/if electors.voters.is_empty\(\) \{/if true {/
promotion-needs-time|ha/lead.rs|s/if left < PROMOTE_NEEDS \{/if false {/
close-sync-key|ha/lead.rs|s/if view.rules.sync_mode != SyncMode::Off && !stands \{/if false \&\& !stands {/
names-at-promotion|ha/lead.rs|s/&candidates::expected\(view, snapshot\),/\&[],/
starved-patience|ha/lead.rs|s/if confirmers.is_empty\(\) && waits_for_somebody\(view\) \{/if false {/
confirmer-progress|ha/lead.rs|s/let progress = if caught_up \{/let progress = if caught_up || true {/
confirmer-streams|ha/candidates.rs|s/standby.state == "streaming" && /(true || standby.state == "streaming") \&\& /
confirmer-member|ha/candidates.rs|s/map_or\(0, member_priority\)/map_or(1, member_priority)/
slots-ttl|ha/slots.rs|s/view.now.since\(\*seen\) < ttl/true/
set-is-safe|ha/sync.rs|s/(pub fn safe\([^{]*\{)/$1 if true { return true; }/
race-nofailover|ha/race.rs|s/if view.rules.tags.failover == Failover::Never \{/if false {/
race-timeline|ha/race.rs|s/if timeline < cluster \{/if false {/
race-not-synchronous|ha/race.rs|s/if !entitled_to_run && /if false \&\& /
race-lag|ha/race.rs|s/\(lag > view.rules.maximum_lag_on_failover\)/(false \&\& lag > view.rules.maximum_lag_on_failover)/
resume-at-once|ha/pause.rs|s/\(may_go_on && !is_word\)/(false \&\& may_go_on \&\& !is_word)/
race-freeze|ha/race.rs|s/let Some\(frozen\) = view.memory.frozen else/let Some(frozen) = view.memory.frozen.or(Some(Default::default())) else/
race-fresh-poll|ha/race.rs|s/poll.at >= frozen && view.now.since\(poll.at\) < POLL_AGE/poll.at >= frozen || true/
race-primary-alive|ha/race.rs|s/\(\*a == PollAnswer::Primary\).then_some\(n\)/(false \&\& *a == PollAnswer::Primary).then_some(n)/
race-last-leader|ha/race.rs|s/if sync.is_some_and\(\|s\| s.leader.as_ref\(\) == Some\(&view.me\)\) \{/if false {/
race-behind|ha/race.rs|s/&& ahead\(other, mine\) =>/\&\& false \&\& ahead(other, mine) =>/
race-rivals|ha/race.rs|s/    voter \|\| \(other/    true || voter || (other/
race-votes|ha/race.rs|s/if have >= need \{/if have >= need || true {/
race-frozen-votes|ha/race.rs|s/c.motion == Motion::Frozen && //
race-outsider|ha/race.rs|s/ \+ u32::from\(!electors.voters.contains\(&view.me\)\)//
race-ancestry|ha/race.rs|s/\(other.timeline, other.position\) > mine/other.position > mine.1/
inherits-any-set|ha/race.rs|s/(    if manual::inherits\(view, snapshot, claim, mine\) \{.*?\n    \}\n)(    if let Some\(reason\) = unfit.*?\n    \}\n)/$2$1/s
yields-to-electable|ha/manual.rs|s/\(elected\(name\) &&/((true || elected(name)) \&\&/
yields-patience|ha/manual.rs|s/view.now.since\(since\) >= patience/view.now.since(since) >= patience * 1000/
takeover-ttl|ha/view.rs|s/stood >= self.takeover_after\(\)/stood >= self.takeover_after() \/ 2/
takeover-ours-only|ha/view.rs|s/seen.holder == Holder::Ours\)/seen.holder == Holder::Ours || true)/
takeover-longer-ttl|ha/view.rs|s/=> ttl.max\(before\)/=> { let _ = before; ttl }/
start-backoff|ha/view.rs|s/Job::Start => 2,/Job::Start => 2000,/
handover-streams|ha/manual.rs|s/if !receives\(snapshot, answer, member\) \{/if false {/
unfit-hands-over|ha/decide.rs|s/fitness::unfit\(view, snapshot\)\) \{/fitness::unfit(view, snapshot).filter(|_| false)) {/
unfit-timeline-first|ha/fitness.rs|s/&& !lead::timeline_is_written\(view, snapshot\)/\&\& false/
unfit-heir-timeline|ha/fitness.rs|s/ && current\(m\)//
unfit-stands-back|ha/decide.rs|s/if fitness::stands_back\(view\) =>/if false =>/
unfit-roomier|ha/race.rs|s/= fitness::roomier\(view, snapshot, poll, mine\) \{/= fitness::roomier(view, snapshot, poll, mine).filter(|_| false) {/
unfit-stop-hangs|ha/decide.rs|s/\.or_else\(\|\| fitness::stop_hangs\(view\)\)//
kin-remembered|ha/lineage.rs|s/record.followed = source\(view\),/record.followed = None,/
race-other-timeline|ha/race.rs|s/    lineage::foreign\(view, snapshot, timeline\)\n/    lineage::foreign(view, snapshot, timeline).filter(|_| false)\n/
close-sync-key-again|ha/lead.rs|s/        && view.memory.sync_write == SyncWrite::Settled;\n    if/;\n    if/
pause-candidate|ha/pause.rs|s/view.leads\(\) \|\| manual::is_forced\(view, snapshot\) \|\| manual::has_left\(view, snapshot\)/true/
door-closed|ha/door.rs|s/StartAs::Primary if must_wait\(view, names\) =>/StartAs::Primary if false \&\& must_wait(view, names) =>/
door-standby|ha/door.rs|s/StartAs::Standby\(whom\) if may_hold_unconfirmed\(view, whom.as_ref\(\)\) =>/StartAs::Standby(whom) if false \&\& may_hold_unconfirmed(view, whom.as_ref()) =>/
door-standby-remembered|ha/door.rs|s/        view.volume.unconfirmed \|\| !/        !/
door-standby-streams|ha/door.rs|s/let receives = /let receives = true || /
door-standby-judged|ha/door.rs|s/ && control.state == ControlState::ShutDown;/;/
door-standby-timeline|ha/door.rs|s/writes == Some\(answer.timeline\)/(writes == Some(answer.timeline) || true)/
door-all-have-it|ha/door.rs|s/        Instance::Primary\(answer, _\) => match missing\(view, answer, closed\) \{/        Instance::Primary(answer, _) => match missing(view, answer, closed).filter(|_| false) {/
retake-other-leader|ha/decide.rs|s/match since.filter\(\|name\| \*name != view.me\) \{/match since.filter(|name| *name != view.me \&\& false) {/
promise-ends-with-key|ha/promises.rs|s/snapshot.leader.is_none\(\) && snapshot.taken/snapshot.taken/
promise-ends-after|ha/promises.rs|s/ && snapshot.taken > self.given//
promotion-never-asked|ha/lineage.rs|s/    never_asked && view.timeline/    false \&\& never_asked \&\& view.timeline/
promotion-under-way|ha/lineage.rs|s/view.memory.origin == Origin::Started && view.n_failures\(Job::Promote\) == 0/true/
promotion-history|ha/lineage.rs|s/ && view.volume.later == Later::NotSeen//
forsaken-patience|ha/adoption.rs|s/view.now.since\(since\) >= FORSAKEN_TTLS \* view.rules.timing.ttl/view.now.since(since) >= FORSAKEN_TTLS * view.rules.timing.ttl || true/
forsaken-founder|ha/adoption.rs|s/others\(snapshot, me\).all\(waits\)/(true || others(snapshot, me).all(waits))/
remote-another|ha/remote.rs|s/    if let Some\(id\) = another\(view, ancestry\) \{\n        return Course/    if let Some(id) = another(view, ancestry).filter(|_| false) {\n        return Course/
remote-differs|ha/remote.rs|s/if ancestry.contains_ours == Containment::Differs \{/if false {/
remote-unshown|ha/remote.rs|s/if began_here\(view, timeline\) && /if false \&\& /
remote-shown-on|ha/remote.rs|s/ancestry.contains_ours != Containment::Shown\(timeline\)/ancestry.contains_ours == Containment::Unshown/
etcd-stale-self|etcd/decide.rs|s/= stale_self\(view, store\) \{/= stale_self(view, store).filter(|_| false) {/
etcd-enough-voters|etcd/decide.rs|s/if voters >= view.voters_wanted\(\) \{/if false \&\& voters >= view.voters_wanted() {/
etcd-one-learner|etcd/decide.rs|s/find\(\|m\| !m.is_voter\(\)\) \{\n        let who/find(|m| false \&\& !m.is_voter()) {\n        let who/
etcd-remembers|etcd/decide.rs|s/if ballot::remembers\(&view.record, &view.data\) \{/if false {/
etcd-prune-fresh-list|etcd/prune.rs|s/if !list_is_good\(view\) \{/if false {/
etcd-prune-alive|etcd/prune.rs|s/=> Verdict::Keep\(Held::Alive\),/=> guarded(view, store, member, Evidence::Departed(address)),/
etcd-prune-too-soon|etcd/prune.rs|s/if left > Duration::ZERO \{/if false \&\& left > Duration::ZERO {/
etcd-prune-quorum|etcd/prune.rs|s/if rest.iter\(\).filter\(alive\).count\(\) < /if false \&\& rest.iter().filter(alive).count() < /
etcd-prune-one-at-a-time|etcd/prune.rs|s/if learner \|\| recent \{/if false \&\& (learner || recent) {/
TABLE
}

mkdir -p "$SCRATCH"
SCRATCH=$(cd "$SCRATCH" && pwd)
# Made anew, so that nothing is left of another table or of files that are gone.
for part in Cargo.toml Cargo.lock src tests templates benches mock-flux-api README.md docs; do
    rm -rf "${SCRATCH:?}/$part"
    cp -r "$part" "$SCRATCH/"
done
guards | perl tests/sim/weave.pl src "$SCRATCH/src" >"$SCRATCH/numbers"
wrong=$?
cat >>"$SCRATCH/src/lib.rs" <<'RUST'

/// Which mutant this process is.
pub fn mutant() -> u32 {
    static WHICH: std::sync::LazyLock<u32> =
        std::sync::LazyLock::new(|| std::env::var("MUTANT").ok().and_then(|n| n.parse().ok()).unwrap_or(0));
    *WHICH
}
RUST
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$SCRATCH/target}
log=$SCRATCH/mutant.log
# Optimised a little: the seeds are worth more than the build.
(cd "$SCRATCH" && cargo test --locked --config 'profile.dev.package.pgherd.opt-level=1' --lib --test scenarios --test sim --no-run) \
    >"$log" 2>&1 || { grep -m1 -A5 '^error' "$log"; exit 1; }
program() { grep -oP "Executable (unittests )?$1 \(\K[^)]+" "$log"; }
library=$(program src/lib.rs) scenarios=$(program tests/scenarios/main.rs) sim=$(program tests/sim/main.rs)
[[ -n $library && -n $scenarios && -n $sim ]] || { echo "cargo does not name the programs it has built"; exit 1; }
cd "$SCRATCH" || exit 1

# TIME KIND WHERE COMMAND: what noticed, into $by. Who is late, or fails and does not say where, has noticed nothing: status 2.
notices() {
    local time=$1 kind=$2 where=$3
    shift 3
    timeout "$time" "$@" >"$log" 2>&1 && return 1
    local status=$?
    by="$kind $(grep -m1 -oP "$where" "$log" | cut -c1-90)"
    [[ $status != 124 && $by != "$kind " ]] || { by="ERROR: $kind ends with $status and names nothing"; return 2; }
}
judge() {
    local failed='^test \K\S+(?= \.\.\. FAILED)' status
    notices 300 scenario "$failed" "$library" etcd::; status=$?; [ $status = 1 ] || return $status
    notices 300 scenario "$failed" "$scenarios"; status=$?; [ $status = 1 ] || return $status
    notices 600 schedule 'schedules/\K.*' "$sim" --seeds 0; status=$?; [ $status = 1 ] || return $status
    notices 3600 seed 'SEED=\K.*' "$sim" --seeds "$SEEDS" --until-failure
}

# Without a mutation nothing may fail, or everything that follows says nothing.
for only in "$library etcd::" "$scenarios" "$sim --seeds 0"; do
    # Unquoted: a program and its arguments.
    MUTANT=0 timeout 600 $only >"$log" 2>&1 || { echo "without a mutation this fails: $only"; tail -5 "$log"; exit 1; }
done
while read -r number name; do
    [ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
    export MUTANT=$number
    judge
    case $? in
        0) ;;
        1) by="SURVIVED $SEEDS seeds" wrong=1 ;;
        *) wrong=1 ;;
    esac
    echo "$name: $by"
done <"$SCRATCH/numbers"
exit $wrong
