package control

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/topology"
)

// loadText loads a topology from a text, with the shop's schemas.
func loadText(t *testing.T, e *cli.Env, text string) (*cli.TopologyFlags, *topology.Topology) {
	t.Helper()
	f := &cli.TopologyFlags{File: filepath.Join(t.TempDir(), "topology.yaml"), SchemaDir: harness.RepoFile("schemas")}
	if err := os.WriteFile(f.File, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	loaded, err := f.Load(e)
	if err != nil {
		t.Fatal(err)
	}
	return f, loaded
}

const definedTopology = `name: ${NAME}
topics:
  shop.events: &events {partitions: 4, types: [UserCreated, UserUpdated]}
  shop.enriched: {partitions: 4}
  shop.dead_letters: {partitions: 1}
pipelines:
  enrich:
    from: shop.events
    stages: [{enrich: {set: {metadata.seen: "'${SECRET}'"}}}]
    to: shop.enriched
    dead_letter: shop.dead_letters
projections:
  user:
    from: shop.enriched # its types follow from the pipeline
    key: data.id
    state: User
    on:
      UserCreated: &set {set: {id: data.id, status: "'${STATUS:-active}'"}}
    snapshots: shop.user.snapshots
`

func TestADefinitionCompilesWithoutTheTopologyAndTheEnvironment(t *testing.T) {
	vars := map[string]string{"NAME": "shop", "STATUS": "new", "SECRET": "hunter2"}
	e := &cli.Env{LookupEnv: func(name string) (string, bool) { v, ok := vars[name]; return v, ok }}
	flags, loaded := loadText(t, e, definedTopology)
	pr := loaded.Projections[0]
	d, err := Define(e, flags, loaded, pr)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Variables) != 2 || strings.Contains(d.Topology, "hunter2") || strings.Contains(d.Topology, "enrich:") {
		t.Errorf("the definition has more than the projection needs: %v\n%s", d.Variables, d.Topology)
	}
	vars = nil // another worker's environment
	again, same, err := d.Compile(loaded.Topic("shop.enriched"))
	if err != nil {
		t.Fatal(err)
	}
	if !same || again.Fold.Hash() != pr.Fold.Hash() || again.Snapshots.Name != pr.Snapshots.Name {
		t.Errorf("fold %s on %s, was %s", again.Fold.Hash(), again.Snapshots.Name, pr.Fold.Hash())
	}
}

func TestAnOldDefinitionFoldsTheCurrentTypesOfItsTopic(t *testing.T) {
	e := &cli.Env{}
	text := strings.NewReplacer("${NAME}", "shop", "${SECRET}", "x").Replace(definedTopology)
	flags, loaded := loadText(t, e, text)
	d, err := Define(e, flags, loaded, loaded.Projections[0])
	if err != nil {
		t.Fatal(err)
	}
	_, grown := loadText(t, e, strings.ReplaceAll(text, "[UserCreated, UserUpdated]", "[OrderCreated, UserDeleted, UserCreated, UserUpdated]"))
	pr, same, err := d.Compile(grown.Topic("shop.enriched"))
	if err != nil || !same || len(pr.From.Types) != 4 || pr.From.Types[2].Name() != "shop.UserCreated" {
		t.Fatalf("error %v, same %v, types %v", err, same, pr.From.Types)
	}
	_, shrunk := loadText(t, e, strings.ReplaceAll(strings.ReplaceAll(text, "[UserCreated, UserUpdated]", "[OrderCreated]"), "UserCreated: &set {set: {id: data.id, status: \"'${STATUS:-active}'\"}}", "OrderCreated: {set: {id: data.id}}"))
	if pr, same, err = d.Compile(shrunk.Topic("shop.enriched")); err != nil || same || len(pr.From.Types) != 2 {
		t.Errorf("the topic lost the type that the projection folds: error %v, same %v", err, same)
	}
}

// A projection of a pipeline's output that inherits everything about its records from the
// pipeline's input: the definition has all of it, so it compiles alone to the same fold, and
// a change makes another fold, which is folded by itself.
func TestADefinitionHasWhatTheTopicInherits(t *testing.T) {
	e := &cli.Env{}
	const text = `name: shop
topics:
  in: {partitions: 4, types: [UserCreated], INPUT}
  out: {partitions: 4}
  dead: {partitions: 1}
pipelines:
  p: {from: in, to: out, dead_letter: dead}
projections:
  user: {from: out, key: data.id, partitioner: other, state: User, on: {UserCreated: {set: {id: data.id}}}, snapshots: s}
`
	folds := map[string]string{}
	for _, input := range []string{
		"partitioner: murmur2", "key_format: long", "key_format: avro, key_schema: User", "tombstone: delete", "headers: cloudevents", "identity: [metadata.source, id]",
		"headers: none, identity: [id]", "headers: cloudevents, identity: [metadata.source]", "key_format: uuid, tombstone: pass, headers: cloudevents, identity: [headers.ce_source, metadata.x]",
	} {
		given := strings.ReplaceAll(text, "INPUT", input)
		flags, loaded := loadText(t, e, given)
		pr := loaded.Projections[0]
		d, err := Define(e, flags, loaded, pr)
		if err != nil {
			t.Errorf("%s: %v", input, err)
			continue
		}
		again, same, err := d.Compile(loaded.Topic("out"))
		if err != nil || !same || again.Fold.Hash() != pr.Fold.Hash() {
			t.Errorf("%s: same %v, %v", input, same, err)
		}
		if other := folds[pr.Fold.Hash()]; other != "" && input != "headers: none, identity: [id]" {
			t.Errorf("%s and %s are the same fold", input, other)
		}
		folds[pr.Fold.Hash()] = input
		_, changed := loadText(t, e, strings.ReplaceAll(text, "INPUT", "key_format: int"))
		if pr, same, err := d.Compile(changed.Topic("out")); err != nil || same || pr.Fold.Hash() != again.Fold.Hash() {
			t.Errorf("%s: after the format of the keys has changed: same %v, %v", input, same, err)
		}
	}
}
