package producer

import (
	"fmt"
	"regexp"
	"strings"

	"millrace/pipeline/cli"
	"millrace/pipeline/topology"
)

// defaultKey is the path of the record key, unless --key or the topic names another one.
const defaultKey = "data.id"

// fieldPath matches the expressions that can be the path of a field. Before it may be the
// root event.
var fieldPath = regexp.MustCompile(`^(event\.)?([A-Za-z_]\w*)((?:\.[A-Za-z_]\w*)*)$`)

// keyOf returns the path of the field that becomes the key of the topic's records.
func (p *producer) keyOf(t *topology.Topic) string {
	if p.key != "" {
		return p.key
	}
	if t.Bare != nil {
		path := fieldPath.FindStringSubmatch(t.Bare.Key.Text)
		if path != nil && (path[1] != "" || path[2] != "key" && path[2] != "headers") {
			return path[2] + path[3]
		}
	}
	return defaultKey
}

// target returns the topology and the topic to send to: --topic, or else the only
// topic with event types that no pipeline writes.
func (p *producer) target() (*topology.Topology, *topology.Topic, error) {
	t, err := p.topology.Load(p.env)
	if err != nil {
		return nil, nil, err
	}
	written := map[string]bool{}
	for _, pl := range t.Pipelines {
		for _, to := range pl.Writes() {
			written[to.Name] = true
		}
	}
	var only *topology.Topic
	var names []string
	for _, candidate := range t.Topics {
		if len(candidate.Types) == 0 || candidate.Snapshots != nil {
			continue
		}
		if candidate.Name == p.topic {
			return t, candidate, nil
		}
		if !written[candidate.Name] {
			names = append(names, candidate.Name)
			only = candidate
		}
	}
	switch {
	case p.topic != "":
		return nil, nil, cli.Usagef("--topic: %s has no topic %s with event types; it has %s", p.topology.File, p.topic, strings.Join(names, ", "))
	case len(names) == 0:
		return nil, nil, &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("%s has no topic with event types to send to", p.topology.File)}
	case len(names) > 1:
		return nil, nil, cli.Usagef("%s has several topics with event types: choose one with --topic: %s", p.topology.File, strings.Join(names, ", "))
	}
	return t, only, nil
}
