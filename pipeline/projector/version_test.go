package projector

import (
	"strings"
	"testing"
	"testing/fstest"

	"millrace/pipeline"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/topology"
)

const versionSchemas = `
{"type": "record", "name": "Bought", "namespace": "up", "fields": [{"name": "id", "type": "string"}, {"name": "type", "type": "string", "default": "Bought"},
 {"name": "timestamp", "type": {"type": "long", "logicalType": "timestamp-micros"}},
 {"name": "data", "type": {"type": "record", "name": "BoughtData", "fields": [{"name": "id", "type": "string"},
  {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 2}}]}}]}
{"type": "record", "name": "Customer", "namespace": "up", "fields": [{"name": "orders", "type": "long", "default": 0}]}
{"type": "record", "name": "Spend", "namespace": "up", "fields": [{"name": "total", "type": {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 2}, "default": "\u0000"}]}`

const versionTopology = `name: up
topics:
  up.bought: {partitions: 4, types: [Bought]}
projections:
  customer: {from: up.bought, key: data.id, state: Customer, on: {Bought: {set: {orders: state.orders + 1}}}, snapshots: up.customer}
  spend: {from: up.bought, key: data.id, state: Spend, on: {Bought: {set: {total: state.total + data.amount}}}, snapshots: up.spend}
`

// versionHashes are the hashes of the projections in release 1.
var versionHashes = map[string]string{"customer": "e9c3e83fe7db9736745ac5b24f0c61fe", "spend": "946faf4ca07c1c2a02cb7126ac8ed792"}

func versionFiles() (files fstest.MapFS, texts map[string]string) {
	files, texts = fstest.MapFS{}, map[string]string{}
	for i, text := range strings.Split(versionSchemas, "\n{")[1:] {
		name := []string{"Bought", "Customer", "Spend"}[i] + ".avsc"
		texts["up."+name] = "{" + text
		files[name] = &fstest.MapFile{Data: []byte("{" + text)}
	}
	return files, texts
}

// upgradedState is a topology, and the control topic as release 1 wrote it.
func upgradedState(t *testing.T) (*topology.Topology, *control.State) {
	t.Helper()
	files, texts := versionFiles()
	loaded, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(versionTopology)}, topology.Options{Schemas: files})
	if err != nil {
		t.Fatal(err)
	}
	state := &control.State{Live: map[string]control.LiveRecord{}, Versions: map[string]map[int]control.VersionRecord{}}
	for _, pr := range loaded.Projections {
		head, rest, _ := strings.Cut(versionTopology, "  customer:")
		_, line, _ := strings.Cut("  customer:"+rest, "  "+pr.Name+":")
		line, _, _ = strings.Cut(line, "\n")
		state.Live[pr.Name] = control.LiveRecord{Version: 1}
		state.Versions[pr.Name] = map[int]control.VersionRecord{1: {
			Version: 1, Fold: versionHashes[pr.Name], Group: "up-projector", Snapshots: "up." + pr.Name, By: "1.0",
			Definition: control.Definition{Topology: head + "  " + pr.Name + ":" + line, Schemas: texts},
		}}
	}
	return loaded, state
}

func versionsOf(p *plan, name string) (versions []wantedVersion) {
	for _, group := range p.groups {
		for _, v := range group {
			if v.name == name {
				versions = append(versions, v)
			}
		}
	}
	return versions
}

func TestAVersionOfAnEarlierReleaseContinuesIfItsMeaningIsTheSame(t *testing.T) {
	loaded, state := upgradedState(t)
	p := newPlan(loaded, state)
	vs := versionsOf(p, "customer")
	if len(vs) != 1 || !vs[0].answers || vs[0].projection.Fold.Hash() != versionHashes["customer"] || vs[0].projection.Fold.Semantics() != 1 || !vs[0].projection.Fold.PartitionIDs() {
		t.Fatalf("customer runs as %+v", vs)
	}
	if now := loaded.Projections[0].Fold; now.Hash() == versionHashes["customer"] || now.PartitionIDs() {
		t.Error("the topology's definition has the meaning of the earlier release")
	}
	if vs[0].projection.From != loaded.Projections[0].From {
		t.Error("the version does not read with the topology's schemas")
	}

	// The topology may define it otherwise meanwhile.
	other := *loaded.Projections[0]
	other.Fold = loaded.Projections[1].Fold
	v, group, err := wantVersion(loaded, &other, state.Versions["customer"][1])
	if err != nil || group != "up-projector" || v.projection.Fold.Hash() != versionHashes["customer"] {
		t.Errorf("from its record: %v in %s: %v", v.projection.Fold.Hash(), group, err)
	}
}

func TestALiveVersionWithAnotherMeaningIsReplacedAndItsGroupIsFollowed(t *testing.T) {
	loaded, state := upgradedState(t)
	p := newPlan(loaded, state)
	lost := p.lost["spend"]
	if lost == nil || lost.successor != nil || !strings.Contains(lost.err.Error(), "decimals") || len(versionsOf(p, "spend")) != 0 {
		t.Fatalf("spend is %+v", lost)
	}
	if !p.follows("up-projector") {
		t.Error("the group of the earlier release is joined")
	}

	spend := loaded.Projections[1]
	if n := state.NextVersion("spend"); n != 2 {
		t.Fatalf("the next version is %d", n)
	}
	state.Versions["spend"][2] = control.VersionRecord{Version: 2, Fold: spend.Fold.Hash(), Group: "up-projector-spend-v2", Definition: control.Definition{Semantics: topology.Semantics}}
	p = newPlan(loaded, state)
	vs := versionsOf(p, "spend")
	if len(vs) != 1 || vs[0].record.Version != 2 || !vs[0].answers || vs[0].isLive(state) || p.lost["spend"].successor == nil || p.lost["spend"].successor.record.Version != 2 {
		t.Errorf("spend runs as %+v, replaced by %+v", vs, p.lost["spend"].successor)
	}
	if !p.follows("up-projector") || p.follows("up-projector-spend-v2") {
		t.Error("want only the group of the earlier release followed")
	}

	state.Live["spend"] = control.LiveRecord{Version: 2, Previous: 1}
	p = newPlan(loaded, state)
	if len(p.lost) != 0 || p.follows("up-projector") || p.unknown["spend"] == nil {
		t.Errorf("after the promotion, lost are %v, and unknown %v", p.lost, p.unknown)
	}
}

func TestAProjectionWhoseLiveVersionALaterReleaseMadeDoesNotRun(t *testing.T) {
	loaded, state := upgradedState(t)
	record := state.Versions["customer"][1]
	record.Fold, record.By, record.Definition.Semantics = "0123", "9.0", topology.Semantics+1
	state.Versions["customer"][1] = record
	state.Versions["spend"][1] = control.VersionRecord{Version: 1, Fold: loaded.Projections[1].Fold.Hash(), Group: "up-projector"}
	p := newPlan(loaded, state)
	err := p.later["customer"]
	if pipeline.ClassOf(err) != pipeline.ClassFatal || !strings.Contains(err.Error(), "9.0") || !strings.Contains(err.Error(), "projector rollback customer") {
		t.Errorf("the reason is %v", err)
	}
	if len(versionsOf(p, "customer")) != 0 || p.lost["customer"] != nil {
		t.Error("the version of a later release runs, or is replaced")
	}
	if vs := versionsOf(p, "spend"); len(vs) != 1 || !vs[0].answers || p.follows("up-projector") {
		t.Errorf("the other projection runs as %+v", vs)
	}
}
