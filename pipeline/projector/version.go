package projector

import (
	"fmt"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/topology"
)

// Versions of a projection run side by side. Each is a fold of its own, with a part of
// the store, a snapshots topic and, from the second version on, a consumer group of its
// own, so a version that is being built takes nothing from the version that answers.
// The control topic contains which version is live, which is the one that answers.
//
// The first versions of all projections share a group, which reads the events once for
// all of them.

// wantedVersion is a version that is to run here.
type wantedVersion struct {
	name       string // of the projection
	record     control.VersionRecord
	projection *topology.Projection
	answers    bool // questions are answered from it: it is live, or replaces a live one
}

// label returns the name of the version in the store, in logs and in metrics.
func (v *wantedVersion) label() string { return versionLabel(v.name, v.record.Version) }

// isLive reports whether the version is live: it may have effects outside.
func (v *wantedVersion) isLive(state *control.State) bool {
	return state.Live[v.name].Version == v.record.Version
}

func versionLabel(name string, n int) string {
	if n == 1 {
		return name
	}
	return fmt.Sprintf("%s@%d", name, n)
}

// versionGroup returns the consumer group of a version.
func versionGroup(t *topology.Topology, name string, n int) string {
	if n == 1 {
		return t.Name + "-projector"
	}
	return fmt.Sprintf("%s-projector-%s-v%d", t.Name, name, n)
}

// versionSnapshots returns the snapshots topic of a version.
func versionSnapshots(pr *topology.Projection, n int) string {
	if n == 1 {
		return pr.Snapshots.Name
	}
	return fmt.Sprintf("%s.v%d", pr.Snapshots.Name, n)
}

// maxTopicName is the length of the longest name of a topic.
const maxTopicName = 249

// setInternal puts the internal records of a new version on a topic of their own.
func setInternal(record *control.VersionRecord, t *topology.Topology, pr *topology.Projection) error {
	name := record.Snapshots + ".internal"
	if len(name) > maxTopicName {
		return fmt.Errorf("version %d of projection %s needs a topic %s, whose name is longer than %d characters: give the projection a shorter name for its snapshots", record.Version, pr.Name, name, maxTopicName)
	}
	if t.Topic(name) != nil {
		return fmt.Errorf("version %d of projection %s needs the topic %s for records of its own, and the topology declares a topic of that name: give that topic another name", record.Version, pr.Name, name)
	}
	record.SetInternal(name)
	return nil
}

// internalLag is how long a version's internal records are not compacted, in milliseconds.
// A restore reads those of the transactions that commit meanwhile.
const internalLag = "3600000"

// internalTopic returns the definition of a version's topic of internal records.
func internalTopic(pr *topology.Projection, name string) *topology.Topic {
	return &topology.Topic{
		Name: name, Partitions: pr.From.Partitions, Replication: pr.Snapshots.Replication,
		Config: map[string]string{"cleanup.policy": "compact", "min.compaction.lag.ms": internalLag},
	}
}

// snapshotsTopic returns the definition of a version's snapshots topic: it is compacted,
// and has as many partitions as the topic of the events.
func snapshotsTopic(pr *topology.Projection, name string) *topology.Topic {
	t := *pr.Snapshots
	t.Name = name
	t.Partitions = pr.From.Partitions
	t.Config = map[string]string{"cleanup.policy": "compact"}
	for k, v := range pr.Snapshots.Config {
		t.Config[k] = v
	}
	return &t
}

// NewVersion returns the record of a version with the definition in the topology.
func NewVersion(e *cli.Env, flags *cli.TopologyFlags, t *topology.Topology, pr *topology.Projection, n int) (control.VersionRecord, error) {
	d, err := control.Define(e, flags, t, pr)
	record := control.VersionRecord{
		Format: control.Format, Version: n, Fold: pr.Fold.Hash(), Snapshots: versionSnapshots(pr, n), Group: versionGroup(t, pr.Name, n),
		Definition: d, Time: e.Now().UTC(), By: e.Build.Version,
	}
	if err == nil {
		err = setInternal(&record, t, pr)
	}
	return record, err
}

// plan is what is to run here.
type plan struct {
	groups map[string][]wantedVersion // by group

	// lost has the live versions that this release cannot compile, by projection.
	lost map[string]*lostVersion

	// later has the projections that cannot start here, because a later release made their
	// live version, with the reason.
	later map[string]error

	// unknown has why other versions cannot be compiled, by label.
	unknown map[string]error
}

// lostVersion is a live version that this release cannot compile. Workers of the release
// that made it continue it. This worker answers from its successor.
type lostVersion struct {
	record    control.VersionRecord
	err       error          // why it cannot be compiled
	successor *wantedVersion // nil if there is none yet
}

// newPlan returns what is to run here.
func newPlan(t *topology.Topology, state *control.State) *plan {
	p := &plan{groups: map[string][]wantedVersion{}, lost: map[string]*lostVersion{}, later: map[string]error{}, unknown: map[string]error{}}
	for _, pr := range t.Projections {
		live := state.Live[pr.Name].Version
		var newest *wantedVersion
		for _, n := range state.Numbers(pr.Name) {
			record := state.Versions[pr.Name][n]
			v, group, err := wantVersion(t, pr, record)
			switch {
			case err == nil:
				v.answers = n == live
				p.groups[group] = append(p.groups[group], v)
				if n > live {
					newest = &p.groups[group][len(p.groups[group])-1]
				}
			case n == live && record.Definition.Meaning() > topology.Semantics:
				p.later[pr.Name] = pipeline.Fatal("version %d of projection %s, which is live, was made by release %s, which is newer than this one: use that release, or return to an earlier version with `projector rollback %s`", n, pr.Name, record.By, pr.Name)
			case n == live:
				p.lost[pr.Name] = &lostVersion{record: record, err: err}
			default:
				p.unknown[v.label()] = err
			}
		}
		if lost := p.lost[pr.Name]; lost != nil && newest != nil {
			newest.answers = true
			v := *newest
			lost.successor = &v
		}
	}
	return p
}

// answers reports whether questions are answered from a version.
func (p *plan) answers(v *wantedVersion) bool {
	for _, group := range p.groups {
		for _, one := range group {
			if one.name == v.name && one.record.Version == v.record.Version {
				return one.answers
			}
		}
	}
	return false
}

// follows reports whether workers of another release own the partitions of a group,
// because it has a live version that this release cannot compile. The other versions in
// the group are only followed here.
func (p *plan) follows(group string) bool {
	for _, lost := range p.lost {
		if lost.record.Group == group {
			return true
		}
	}
	return false
}

// wantVersion returns a version and the group in which it runs. If the topology defines
// the projection otherwise, the version is compiled from its record.
func wantVersion(t *topology.Topology, pr *topology.Projection, record control.VersionRecord) (v wantedVersion, group string, err error) {
	v, group = wantedVersion{name: pr.Name, record: record, projection: pr}, record.Group
	if f := pr.Fold.WithHash(record.Hash()); f != nil {
		if f != pr.Fold {
			with := *pr
			with.Fold, v.projection = f, &with
		}
		return v, group, nil
	}
	compiled, same, err := record.Definition.Compile(t.Topic(pr.From.Name))
	if err != nil {
		return v, "", err
	}
	if hash := compiled.Fold.Hash(); hash != record.Hash() {
		return v, "", fmt.Errorf("it compiles to fold %s, and was %s: release %s, which made it, gives it another meaning", hash, record.Hash(), record.By)
	}
	v.projection = compiled
	if !same {
		// Its events are read with other schemas than those of its group, so it runs
		// alone.
		group = fmt.Sprintf("%s-%s-v%d", group, pr.Name, record.Version)
	}
	return v, group, nil
}

// Uncompilable returns why this release cannot compile a version of a projection, nil if
// it can.
func Uncompilable(t *topology.Topology, pr *topology.Projection, record control.VersionRecord) error {
	_, _, err := wantVersion(t, pr, record)
	return err
}

// signature returns a text that differs if a loop must be started again.
func signature(wanted []wantedVersion, follows bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "follows %v\n", follows)
	for _, v := range wanted {
		fmt.Fprintf(&b, "%s %d %s %s %s\n", v.name, v.record.Version, v.record.Fold, v.record.Snapshots, v.record.Internal)
	}
	return b.String()
}
