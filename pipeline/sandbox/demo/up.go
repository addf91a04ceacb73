package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/topology"
)

// up starts everything, prints the addresses and examples, and waits for the context to end.
func (d *demo) up(ctx context.Context) (err error) {
	d.began = time.Now()
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.start(ctx); err != nil {
		return err
	}
	processor, projector := d.child("processor"), d.child("projector")
	fmt.Fprintf(d.env.Stdout, `
Millrace is running.

  Kafka            %s
  schema registry  %s/subjects
  processor        %s/readyz?verbose  and  /metrics
  projector        %s/readyz?verbose  and  /metrics

%sCtrl-C stops everything and removes all data.
`, strings.Join(d.brokers, ","), d.registry, processor.url, projector.url, d.hints(d.loadTopology(), projector.url))
	select {
	case <-ctx.Done():
		return nil
	case <-processor.exited:
		return processor.exitError()
	case <-projector.exited:
		return projector.exitError()
	}
}

// loadTopology returns the topology, nil if this program cannot load it: the programs in
// --bin may have stages that this program does not have.
func (d *demo) loadTopology() *topology.Topology {
	f := cli.TopologyFlags{File: d.topology, SchemaDir: d.env.Getenv("MILLRACE_SCHEMAS")}
	t, err := f.Load(d.env)
	if err != nil {
		return nil
	}
	return t
}

// maxHints is the largest number of topics, and of projections, in the hints.
const maxHints = 3

// hints returns examples that send events to the topology's sources and query its
// projections, with an empty line at the end; "" if there is nothing to show.
func (d *demo) hints(t *topology.Topology, projector string) string {
	if t == nil {
		return ""
	}
	at := addressFlags(strings.Join(d.brokers, ","), d.registry)
	if d.topology != "topology.yaml" {
		at += " -t " + d.topology
	}
	producer := filepath.Join(d.bin, "producer")
	var lines []string
	for _, topic := range sources(t) {
		switch {
		case isShop(topic):
			lines = append(lines, fmt.Sprintf("  %s generate --events 1000%s", producer, at))
		default:
			lines = append(lines, fmt.Sprintf("  %s send events.jsonl --topic %s%s", producer, topic.Name, at))
		}
	}
	lines = lines[:min(maxHints, len(lines))]
	for _, p := range t.Projections[:min(maxHints, len(t.Projections))] {
		lines = append(lines, fmt.Sprintf("  curl '%s/v1/projections/%s?limit=3'", projector, p.Name))
	}
	if len(lines) == 0 {
		return ""
	}
	return "Send events in another terminal, then query the results:\n\n" + strings.Join(lines, "\n") + "\n\n"
}

// sources returns the topics that a pipeline or a projection reads and no pipeline or
// projection writes, sorted by name.
func sources(t *topology.Topology) (out []*topology.Topic) {
	written := map[string]bool{}
	for _, p := range t.Pipelines {
		for _, topic := range p.Writes() {
			written[topic.Name] = true
		}
	}
	for _, p := range t.Projections {
		written[p.Snapshots.Name] = true
	}
	add := func(topic *topology.Topic) {
		if !written[topic.Name] && !slices.Contains(out, topic) {
			out = append(out, topic)
		}
	}
	for _, p := range t.Pipelines {
		add(p.From)
	}
	for _, p := range t.Projections {
		add(p.From)
	}
	slices.SortFunc(out, func(a, b *topology.Topic) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// isShop reports whether a topic is the one that producer generate sends the shop's events
// to.
func isShop(topic *topology.Topic) bool {
	return topic.Name == demoEvents && slices.ContainsFunc(topic.Types, func(s *codec.Schema) bool { return s.Name() == "shop.OrderCreated" })
}
