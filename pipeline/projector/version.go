package projector

import (
	"fmt"
	"log/slog"
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
}

// label returns the name of the version in the store, in logs and in metrics.
func (v *wantedVersion) label() string { return versionLabel(v.name, v.record.Version) }

// isLive reports whether the version answers questions.
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
	return control.VersionRecord{
		Format: control.Format, Version: n, Fold: pr.Fold.Hash(), Snapshots: versionSnapshots(pr, n), Group: versionGroup(t, pr.Name, n),
		Definition: d, Time: e.Now().UTC(), By: e.Build.Version,
	}, err
}

// wantedVersions returns the versions that are to run, by group. It leaves out a version
// that cannot be compiled any more, unless that version is live, which is an error.
func wantedVersions(t *topology.Topology, state *control.State, log *slog.Logger) (map[string][]wantedVersion, error) {
	out := map[string][]wantedVersion{}
	for _, pr := range t.Projections {
		for _, n := range state.Numbers(pr.Name) {
			v, group, err := wantVersion(t, pr, state.Versions[pr.Name][n])
			switch {
			case err == nil:
				out[group] = append(out[group], v)
			case state.Live[pr.Name].Version == n:
				return nil, pipeline.Fatal("version %d of projection %s, which is live, cannot be compiled any more: %w", n, pr.Name, err)
			default:
				log.Error("a version cannot be compiled any more", "projection", pr.Name, "version", n, "err", err)
			}
		}
	}
	return out, nil
}

// wantVersion returns a version and the group in which it runs. If the topology defines
// the projection otherwise, the version is compiled from its record.
func wantVersion(t *topology.Topology, pr *topology.Projection, record control.VersionRecord) (v wantedVersion, group string, err error) {
	v, group = wantedVersion{name: pr.Name, record: record, projection: pr}, record.Group
	if record.Fold == pr.Fold.Hash() {
		return v, group, nil
	}
	compiled, same, err := record.Definition.Compile(t.Topic(pr.From.Name))
	if err != nil {
		return v, "", err
	}
	if hash := compiled.Fold.Hash(); hash != record.Fold {
		return v, "", fmt.Errorf("it compiles to fold %s, and was %s: another release of the program made it", hash, record.Fold)
	}
	v.projection = compiled
	if !same {
		// Its events are read with other schemas than those of its group, so it runs
		// alone.
		group = fmt.Sprintf("%s-%s-v%d", group, pr.Name, record.Version)
	}
	return v, group, nil
}

// signature returns a text that differs if a loop must be started again.
func signature(wanted []wantedVersion) string {
	var b strings.Builder
	for _, v := range wanted {
		fmt.Fprintf(&b, "%s %d %s %s\n", v.name, v.record.Version, v.record.Fold, v.record.Snapshots)
	}
	return b.String()
}
