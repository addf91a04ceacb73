package topology_test

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/topology"
	"millrace/schemas"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// environment resolves ${VAR}.
func environment(name string) (string, bool) {
	value, ok := map[string]string{"PREFIX": "shop", "EMPTY": "", "LIMIT": "100.0", "PARTITIONS": "6"}[name]
	return value, ok
}

// load loads testdata/DIR/NAME.yaml. Its schemas are in testdata/DIR/NAME if that is
// a directory; otherwise the shipped schemas are used.
func load(t *testing.T, dir, name string) (*topology.Topology, error) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", dir, name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	o := topology.Options{Schemas: schemas.FS, LookupEnv: environment, Clock: clock, Stages: kinds()}
	o.File = func(path string) ([]byte, error) { return fs.ReadFile(os.DirFS("testdata/files"), path) }
	if own := filepath.Join("testdata", dir, name); isDir(own) {
		o.Schemas = os.DirFS(own)
	}
	return topology.Load(topology.Source{Name: "topology.yaml", Text: text}, o)
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// names returns the names of the topologies in a directory of testdata.
func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".yaml"))
	}
	return names
}

// golden compares got with testdata/DIR/NAME.txt.
func golden(t *testing.T, dir, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", dir, name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s\nwant the content of %s (-update rewrites it):\n%s", got, path, want)
	}
}

// A faulty topology yields exactly the message in its .txt file.
func TestBadTopologies(t *testing.T) {
	all := names(t, "bad")
	if len(all) < 40 {
		t.Errorf("found %d faulty topologies, want at least 40", len(all))
	}
	for _, name := range all {
		t.Run(name, func(t *testing.T) {
			plan, err := load(t, "bad", name)
			if err == nil || plan != nil {
				t.Fatal("Load accepted the topology")
			}
			var faults topology.Faults
			if !errors.As(err, &faults) || len(faults) == 0 {
				t.Fatalf("%T is not Faults", err)
			}
			golden(t, "bad", name, err.Error()+"\n")
		})
	}
}

// A valid topology yields the plan in its .txt file.
func TestGoodTopologies(t *testing.T) {
	for _, name := range names(t, "good") {
		t.Run(name, func(t *testing.T) {
			plan, err := load(t, "good", name)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "good", name, dump(plan))
		})
	}
}

// dump describes a plan as text.
func dump(plan *topology.Topology) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("topology %s", plan.Name)
	for _, t := range plan.Topics {
		p("\ntopic %s", t.Name)
		p("  partitions %d, replication %d, config %v", t.Partitions, t.Replication, t.Config)
		for _, s := range t.Types {
			p("  type %s", s.Name())
		}
		if t.Bare != nil {
			p("  bare: id %q, time %q, key %q", t.Bare.ID.Text, t.Bare.Time.Text, t.Bare.Key.Text)
		}
		if t.Headers != topology.KeepHeaders {
			p("  headers: %s, source %q", t.Headers, t.Source)
		}
		dumpRecords(p, t)
		if t.Snapshots != nil {
			p("  snapshots of %s", t.Snapshots.Name)
		}
	}
	for _, t := range plan.Tables {
		p("\ntable %s of %s", t.Name, t.Schema.Name())
		if t.Topic != nil {
			p("  topic %s", t.Topic.Name)
		} else {
			p("  file %s, %d bytes, key %s", t.File, len(t.Text), t.Key)
		}
	}
	for _, pl := range plan.Pipelines {
		dumpPipeline(p, pl)
	}
	if e := plan.Encryption; e != nil {
		p("\nencryption with the keys on %s", e.Keys.Name)
		for _, s := range plan.Topic("shop.events").Types {
			p("  %s is of %q", s.Name(), e.Subject(s))
		}
	}
	for _, pr := range plan.Projections {
		dumpProjection(p, pr)
	}
	return b.String()
}

// dumpRecords shows what differs from the defaults of a topic that is not compacted.
func dumpRecords(p func(format string, args ...any), t *topology.Topic) {
	if f := t.KeyFormat; !f.IsText() {
		p("  keys: %s", f)
	}
	if t.Partitioner != pipeline.Murmur2 {
		p("  partitioner: %s", t.Partitioner)
	}
	if t.Tombstone != topology.TombstoneDeadLetter && t.Snapshots == nil {
		p("  tombstones: %s", t.Tombstone)
	}
	if len(t.Identity) != 1 || !t.Identity[0].ID {
		p("  identity: %+v", t.Identity)
	}
}

func dumpPipeline(p func(format string, args ...any), pl *topology.Pipeline) {
	p("\npipeline %s, %s", pl.Name, pl.Guarantee)
	p("  from %s, dead letters to %s", pl.From.Name, pl.DeadLetter.Name)
	if pl.Tombstone != topology.TombstoneDeadLetter {
		p("  tombstones: %s", pl.Tombstone)
	}
	if pl.Receipts != nil {
		p("  receipts to %s", pl.Receipts.Name)
	}
	for _, t := range pl.Writes() {
		p("  to %s", t.Name)
	}
	for _, s := range pl.Stages {
		p("  stage %s: %s, on error %s", s.Name, s.Kind.Name, []string{"dead letter", "skip", "stop"}[s.OnError])
		for i, on := range s.On {
			if on {
				p("    %s: reads %s, writes %s", pl.Types[i].Name(), paths(s.Built.Reads(i)), paths(s.Built.Writes(i)))
			}
		}
	}
	for i := range pl.Types {
		var slots []string
		for s := range pl.Layouts[i].Len() {
			slots = append(slots, pl.Layouts[i].Path(s))
		}
		p("  %s: %s", pl.Types[i].Name(), strings.Join(slots, ", "))
		if !pl.Emits[i] {
			p("    never comes out")
		}
		if added := added(pl.Types[i].Root(), pl.Output[i].Root(), ""); added != "" {
			p("    adds%s", added)
		}
	}
	for _, old := range pl.Old {
		p("  old shape of %s: %s", pl.Types[old.Type].Name(), old.Schema)
	}
}

func dumpProjection(p func(format string, args ...any), pr *topology.Projection) {
	p("\nprojection %s", pr.Name)
	if pr.Subjects {
		p("  of the subjects of what is encrypted")
	}
	p("  from %s, snapshots to %s, state %s", pr.From.Name, pr.Snapshots.Name, pr.Fold.State().Name())
	if w := pr.Fold.Window(); w.Size > 0 {
		p("  windows of %s every %s, grace %s, kept %s", w.Size, w.Every, w.Grace, w.Retention)
	}
	if pr.Late != nil {
		p("  late events to %s", pr.Late.Name)
	}
	if wait, apply := pr.Fold.Wait(); wait != fold.DefaultWait || apply {
		p("  waits %d records, then applies: %v", wait, apply)
	}
	if pr.Publish != (topology.Publish{}) {
		p("  publishes %+v", pr.Publish)
	}
	if pr.Fold.AnyPartition() {
		p("  in any partition")
	}
}

// added lists the fields of a record that the record before it does not have.
func added(before, after *codec.Node, path string) (out string) {
	for _, f := range after.Fields {
		was := before.Field(f.Name)
		switch {
		case was == nil:
			out += fmt.Sprintf(" %s%s (%s, default %v)", path, f.Name, f.Type, f.Default)
		case f.Type.Kind == codec.Record:
			out += added(was.Type, f.Type, path+f.Name+".")
		}
	}
	return out
}

func paths(all [][]string) string {
	var out []string
	for _, path := range all {
		if joined := strings.Join(path, "."); !slices.Contains(out, joined) {
			out = append(out, joined)
		}
	}
	slices.Sort(out)
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, ", ")
}
