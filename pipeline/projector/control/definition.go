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

	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/topology"
)

// definition is what a version of a projection is made by: as much of
// topology.yaml as it takes, the schemas, and the variables that were in it. Any
// worker can compile it again, whatever its own topology says by then.
type definition struct {
	Topology  string            `json:"topology"`
	Schemas   map[string]string `json:"schemas"` // by file
	Variables map[string]string `json:"variables,omitempty"`
}

// Define returns the definition of one of the topology's projections.
func Define(e *cli.Env, flags *cli.TopologyFlags, t *topology.Topology, pr *topology.Projection) (definition, error) {
	text, err := os.ReadFile(flags.File)
	if err != nil {
		return definition{}, err
	}
	d := definition{Schemas: map[string]string{pr.Fold.State().Name() + ".avsc": pr.Fold.State().String()}, Variables: map[string]string{}}
	for _, s := range pr.From.Types {
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
		return d, fmt.Errorf("projection %s cannot be written down for other workers: %w", pr.Name, err)
	}
	if got.Name != t.Name || got.Projections[0].Fold.Hash() != pr.Fold.Hash() {
		return d, fmt.Errorf("projection %s cannot be written down for other workers: what is written is fold %s, and it is %s; a fold that is written in Go cannot", pr.Name, got.Projections[0].Fold.Hash(), pr.Fold.Hash())
	}
	return d, nil
}

// Compile returns the projection. If it still compiles for the events of a topic
// as another topology has them, it is for those (same), and can be folded along
// with others of that topology.
func (d definition) Compile(from *topology.Topic) (pr *topology.Projection, same bool, err error) {
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
	now := definition{Schemas: maps.Clone(d.Schemas), Variables: d.Variables}
	for _, s := range from.Types {
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

func (d definition) load(lookup func(string) (string, bool)) (*topology.Topology, error) {
	files := fstest.MapFS{}
	for name, text := range d.Schemas {
		files[name] = &fstest.MapFile{Data: []byte(text)}
	}
	t, err := topology.Load(topology.Source{Name: "definition", Text: []byte(d.Topology)}, topology.Options{Schemas: files, LookupEnv: lookup})
	if err != nil {
		return nil, err
	}
	if len(t.Projections) != 1 {
		return nil, fmt.Errorf("%d projections where there should be one", len(t.Projections))
	}
	return t, nil
}

// excerpt returns what of a topology is needed for one projection: its name, the
// projection, and the topics that it names.
func excerpt(text []byte, pr *topology.Projection) (string, error) {
	var doc yaml.Node
	if err := yaml.Load(text, &doc, yaml.WithSingleDocument()); err != nil {
		return "", err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return "", errors.New("it is empty")
	}
	root := unaliased(doc.Content[0])
	name, topics, projections := entryOf(root, "name"), entryOf(root, "topics"), entryOf(root, "projections")
	if name == nil || topics == nil || projections == nil || entryOf(projections, pr.Name) == nil {
		return "", fmt.Errorf("it has no projection %s", pr.Name) // it had, a moment ago
	}
	it := entryOf(projections, pr.Name)
	kept := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for i := 0; i+1 < len(topics.Content); i += 2 {
		key, topic := topics.Content[i], topics.Content[i+1]
		if key.Value != pr.From.Name && !mentions(it, key.Value) {
			continue
		}
		if key.Value == pr.From.Name && topic.Kind == yaml.MappingNode {
			// What a topic holds may follow from the pipelines that write it.
			types := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
			for _, s := range pr.From.Types {
				types.Content = append(types.Content, scalar(s.Name()))
			}
			set(topic, "types", types)
			if b := pr.From.Bare; b != nil && entryOf(topic, "envelope") == nil { // which follows, too
				set(topic, "envelope", scalar("none"))
				for _, e := range []struct{ name, text string }{{"id", b.ID.Text}, {"time", b.Time.Text}, {"key", b.Key.Text}} {
					if e.text != "" {
						set(topic, e.name, scalar(e.text))
					}
				}
			}
		}
		kept.Content = append(kept.Content, key, topic)
	}
	out := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{
		scalar("name"), name,
		scalar("topics"), kept,
		scalar("projections"), {Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{scalar(pr.Name), it}},
	}}
	if e := excerptEncryption(entryOf(root, "encryption"), pr); e != nil {
		out.Content = append(out.Content, scalar("encryption"), e)
	}
	data, err := yaml.Dump(out)
	return string(data), err
}

// excerptEncryption returns what of the encryption is about one projection, nil if
// nothing is.
func excerptEncryption(all *yaml.Node, pr *topology.Projection) *yaml.Node {
	if all == nil || entryOf(all, "key_topic") == nil || entryOf(all, "subject") == nil {
		return nil
	}
	subjects := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
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
	return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{scalar("key_topic"), entryOf(all, "key_topic"), scalar("subject"), subjects}}
}

func scalar(text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: text} }

// unaliased returns a node with what its aliases stand for, and without comments.
func unaliased(n *yaml.Node) *yaml.Node {
	n = topology.Resolved(n)
	out := &yaml.Node{Kind: n.Kind, Style: n.Style, Tag: n.Tag, Value: n.Value}
	for _, c := range n.Content {
		out.Content = append(out.Content, unaliased(c))
	}
	return out
}

func entryOf(n *yaml.Node, key string) *yaml.Node {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func set(n *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content[i+1] = value
			return
		}
	}
	n.Content = append(n.Content, scalar(key), value)
}

// mentions reports whether a text is one of the values in a node.
func mentions(n *yaml.Node, text string) bool {
	return n.Kind == yaml.ScalarNode && strings.TrimSpace(n.Value) == text || slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return mentions(c, text) })
}
