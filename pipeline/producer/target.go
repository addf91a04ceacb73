package producer

import (
	"fmt"
	"strings"

	"millrace/pipeline/cli"
	"millrace/pipeline/topology"
)

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
