package control

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing/fstest"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/identity"
	"millrace/pipeline/topology"
)

// A Definition holds everything that a version of a projection is compiled from: the
// relevant part of topology.yaml, the schemas, and the variables in that part. Every worker
// can compile it, independent of the worker's own topology.
type Definition struct {
	Topology  string            `json:"topology"` // YAML
	Schemas   map[string]string `json:"schemas"`  // by file name
	Variables map[string]string `json:"variables,omitempty"`

	// Semantics is topology.Semantics of the release that wrote the definition; 0 means 1.
	Semantics int `json:"semantics,omitempty"`
}

// Meaning returns the semantics of the definition.
func (d *Definition) Meaning() int { return max(1, d.Semantics) }

// Define returns the definition of a projection of t. flags name the topology's file. It
// checks that the definition compiles to the same fold.
func Define(e *cli.Env, flags *cli.TopologyFlags, t *topology.Topology, pr *topology.Projection) (Definition, error) {
	text, err := os.ReadFile(flags.File)
	if err != nil {
		return Definition{}, err
	}
	d := Definition{Semantics: pr.Fold.Semantics(), Schemas: map[string]string{pr.Fold.State().Name() + ".avsc": pr.Fold.State().String()}, Variables: map[string]string{}}
	for _, s := range schemasOf(pr.From) {
		d.Schemas[s.Name()+".avsc"] = s.String()
	}
	if d.Topology, err = excerpt(text, pr); err != nil {
		return d, fmt.Errorf("%s: %w", flags.File, err)
	}
	got, err := d.load(func(name string) (string, bool) {
		if e.LookupEnv == nil {
			return "", false
		}
		value, ok := e.LookupEnv(name)
		if ok {
			d.Variables[name] = value
		}
		return value, ok
	})
	if err != nil {
		return d, fmt.Errorf("projection %s cannot be recorded for other workers: %w", pr.Name, err)
	}
	if got.Name != t.Name || got.Projections[0].Fold.Hash() != pr.Fold.Hash() {
		return d, fmt.Errorf("projection %s cannot be recorded for other workers: its record compiles to fold %s instead of %s; a fold written in Go cannot be recorded", pr.Name, got.Projections[0].Fold.Hash(), pr.Fold.Hash())
	}
	return d, nil
}

// Compile compiles the projection. If it compiles to the same fold for the event types that
// from has in the current topology, Compile returns that projection and same is true: it can
// be folded together with the other projections of the current topology.
func (d Definition) Compile(from *topology.Topic) (pr *topology.Projection, same bool, err error) {
	lookup := func(name string) (string, bool) {
		value, ok := d.Variables[name]
		return value, ok
	}
	t, err := d.load(lookup)
	if err != nil {
		return nil, false, err
	}
	pr = t.Projections[0]
	if from == nil || from.Name != pr.From.Name || len(from.Types) == 0 {
		return pr, false, nil
	}
	now := Definition{Schemas: maps.Clone(d.Schemas), Variables: d.Variables, Semantics: d.Semantics}
	for _, s := range schemasOf(from) {
		now.Schemas[s.Name()+".avsc"] = s.String()
	}
	with := *pr
	with.From = from
	if now.Topology, err = excerpt([]byte(d.Topology), &with); err != nil {
		return nil, false, err
	}
	if t, err = now.load(lookup); err != nil || t.Projections[0].Fold.Hash() != pr.Fold.Hash() {
		return pr, false, nil
	}
	return t.Projections[0], true, nil
}

// schemasOf returns the schemas of a topic's events and keys.
func schemasOf(t *topology.Topic) []*codec.Schema {
	if key := t.KeyFormat.Schema; key != nil {
		return append(slices.Clone(t.Types), key)
	}
	return t.Types
}

func (d Definition) load(lookup func(string) (string, bool)) (*topology.Topology, error) {
	files := fstest.MapFS{}
	for name, text := range d.Schemas {
		files[name] = &fstest.MapFile{Data: []byte(text)}
	}
	t, err := topology.Load(topology.Source{Name: "definition", Text: []byte(d.Topology)}, topology.Options{Schemas: files, LookupEnv: lookup, Semantics: d.Meaning()})
	if err != nil {
		return nil, err
	}
	if len(t.Projections) != 1 {
		return nil, fmt.Errorf("the definition has %d projections instead of one", len(t.Projections))
	}
	return t, nil
}

// excerpt returns the part of a topology that one projection needs: the topology's name, the
// projection, the topics that the projection names, and its part of the encryption.
func excerpt(text []byte, pr *topology.Projection) (string, error) {
	var doc yaml.Node
	if err := yaml.Load(text, &doc, yaml.WithSingleDocument()); err != nil {
		return "", err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return "", errors.New("the topology is empty")
	}
	root := unaliased(doc.Content[0])
	name, topics, projections := entryOf(root, "name"), entryOf(root, "topics"), entryOf(root, "projections")
	if name == nil || topics == nil || projections == nil || entryOf(projections, pr.Name) == nil {
		return "", fmt.Errorf("the topology has no projection %s: the file has changed since it was loaded", pr.Name)
	}
	it := entryOf(projections, pr.Name)
	out := mapping(
		scalar("name"), name,
		scalar("topics"), excerptTopics(topics, it, pr),
		scalar("projections"), mapping(scalar(pr.Name), it),
	)
	if e := excerptEncryption(entryOf(root, "encryption"), pr); e != nil {
		out.Content = append(out.Content, scalar("encryption"), e)
	}
	data, err := yaml.Dump(out)
	return string(data), err
}

// excerptTopics returns the topics that a projection names. it is the projection's node.
func excerptTopics(topics, it *yaml.Node, pr *topology.Projection) *yaml.Node {
	out := mapping()
	for i := 0; i+1 < len(topics.Content); i += 2 {
		key, topic := topics.Content[i], topics.Content[i+1]
		from := key.Value == pr.From.Name
		if !from && !mentions(it, key.Value) {
			continue
		}
		if from && topic.Kind == yaml.MappingNode {
			completeSource(topic, pr)
		}
		out.Content = append(out.Content, key, topic)
	}
	return out
}

// completeSource sets the properties of the projection's source topic that the topology may
// derive from the pipelines that write the topic: the excerpt has no pipelines.
func completeSource(topic *yaml.Node, pr *topology.Projection) {
	types := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	for _, s := range pr.From.Types {
		types.Content = append(types.Content, scalar(s.Name()))
	}
	set(topic, "types", types)
	if pr.Fold.Semantics() > 1 { // releases with semantics 1 do not know what follows
		completeRecords(topic, pr.From)
	}
	b := pr.From.Bare
	if b == nil || entryOf(topic, "envelope") != nil {
		return
	}
	set(topic, "envelope", scalar("none"))
	for _, e := range []struct{ name, text string }{{"id", b.ID.Text}, {"time", b.Time.Text}, {"key", b.Key.Text}} {
		if e.text != "" {
			set(topic, e.name, scalar(e.text))
		}
	}
}

// completeRecords sets what a topic inherits, or declares since, about its records.
func completeRecords(topic *yaml.Node, from *topology.Topic) {
	if from.Headers != topology.KeepHeaders && entryOf(topic, "headers") == nil {
		set(topic, "headers", scalar(string(from.Headers)))
	}
	byDefault := slices.ContainsFunc(from.Identity, func(p identity.Part) bool { return p.Default != "" })
	if id := from.Identity; len(id) > 0 && !byDefault && (!id.IsID() || from.Headers == topology.CloudEvents) && entryOf(topic, "identity") == nil {
		parts := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, name := range id.Names() {
			parts.Content = append(parts.Content, scalar(name))
		}
		set(topic, "identity", parts)
	}
	if f := from.KeyFormat; !f.IsText() || entryOf(topic, "key_format") != nil {
		remove(topic, "key_schema")
		set(topic, "key_format", scalar(f.String()))
		if f.Schema != nil {
			set(topic, "key_schema", scalar(f.Schema.Name()))
		}
	}
	if entryOf(topic, "partitioner") != nil || from.Partitioner != pipeline.Murmur2 {
		set(topic, "partitioner", scalar(string(from.Partitioner)))
	}
	usual := topology.TombstoneDeadLetter
	if strings.Contains(from.Config["cleanup.policy"], "compact") {
		usual = topology.TombstoneDelete
	}
	if entryOf(topic, "tombstone") != nil || from.Tombstone != usual {
		set(topic, "tombstone", scalar(string(from.Tombstone)))
	}
}

// excerptEncryption returns the part of the encryption that concerns one projection, nil if
// there is none.
func excerptEncryption(all *yaml.Node, pr *topology.Projection) *yaml.Node {
	if all == nil || entryOf(all, "key_topic") == nil || entryOf(all, "subject") == nil {
		return nil
	}
	subjects := mapping()
	given := entryOf(all, "subject")
	for i := 0; i+1 < len(given.Content); i += 2 {
		name := given.Content[i].Value
		if slices.ContainsFunc(append([]*codec.Schema{pr.Fold.State()}, pr.From.Types...), func(s *codec.Schema) bool {
			tagged, _ := s.Tagged()
			return len(tagged) > 0 && (name == s.Name() || strings.HasSuffix(s.Name(), "."+name))
		}) {
			subjects.Content = append(subjects.Content, given.Content[i], given.Content[i+1])
		}
	}
	if len(subjects.Content) == 0 {
		return nil
	}
	return mapping(scalar("key_topic"), entryOf(all, "key_topic"), scalar("subject"), subjects)
}

// mapping returns a node with keys and values in turn.
func mapping(content ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: content}
}

func scalar(text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: text} }

// unaliased returns a copy of a node with its aliases resolved, and without comments.
func unaliased(n *yaml.Node) *yaml.Node {
	n = topology.Resolved(n)
	out := &yaml.Node{Kind: n.Kind, Style: n.Style, Tag: n.Tag, Value: n.Value}
	for _, c := range n.Content {
		out.Content = append(out.Content, unaliased(c))
	}
	return out
}

// entryOf returns the value of a key in a mapping, nil if there is none.
func entryOf(n *yaml.Node, key string) *yaml.Node {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// set sets the value of a key in a mapping.
func set(n *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content[i+1] = value
			return
		}
	}
	n.Content = append(n.Content, scalar(key), value)
}

// remove removes a key.
func remove(n *yaml.Node, key string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content = slices.Delete(n.Content, i, i+2)
			return
		}
	}
}

// mentions reports whether a scalar in a node is text.
func mentions(n *yaml.Node, text string) bool {
	return n.Kind == yaml.ScalarNode && strings.TrimSpace(n.Value) == text || slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return mentions(c, text) })
}
