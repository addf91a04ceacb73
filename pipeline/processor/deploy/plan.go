// Package deploy compares a topology with the cluster: `processor plan`, `apply`
// and `dry-run`.
//
// Start at [PlanCommand] and planner.plan in command.go. plan.go compares topics
// and schemas with the cluster and the registry, edits.go compares the topology with
// the one that was applied last, and refuse.go holds the edits that a plan refuses.
// deployment.go is the record of the last apply on the control topic.
//
// [DryRunCommand] in dryrun.go runs events through pipelines without writing. Before
// that, inspect.go checks everything that a worker needs.
//
// A single goroutine runs everything here. Handlers of pipelines may start others,
// see the chain package.
package deploy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// A plan holds the steps of an apply and the unsafe edits.
type plan struct {
	Topology string      `json:"topology"`
	Hash     string      `json:"hash"`
	Applied  *deployment `json:"applied"` // the last apply; null if there was none
	Steps    []step      `json:"steps"`
	Notes    []planNote  `json:"notes"`
	Refused  []refusal   `json:"refused"`
	Done     bool        `json:"done"` // apply carried the steps out

	kept map[string]bool // names of the topology's pipelines
}

// A step is one action of apply.
type step struct {
	Do   string `json:"do"` // one of the constants below
	Name string `json:"name"`
	Text string `json:"text"`

	run func(context.Context) error
}

// Actions of steps.
const (
	doCreate   = "create topic"
	doConfig   = "set config of topic"
	doRegister = "register schema"
	doRecord   = "write down" // store the applied topology
)

// A planNote is a remark that needs no step.
type planNote struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

func (p *plan) note(name, format string, args ...any) {
	p.Notes = append(p.Notes, planNote{name, fmt.Sprintf(format, args...)})
}

// describeDeployed describes the topics and groups of the topology, and those of
// the last applied one, which can be nil.
func describeDeployed(ctx context.Context, w *worker.Worker, applied *deployment) (kafka.Description, error) {
	names, groups := map[string]bool{control.Topic(w.Topology): true}, map[string]bool{}
	for _, spec := range declaredTopics(w.Topology, kafka.Description{}) {
		names[spec.Name] = true
	}
	for _, t := range w.Topology.Topics {
		names[t.Name] = true
	}
	for _, pl := range w.Topology.Pipelines {
		groups[w.Topology.Group(pl)] = true
	}
	if applied != nil {
		for name := range applied.Topics {
			names[name] = true
		}
		for name, pl := range applied.Pipelines {
			groups[applied.Name+"-"+name], names[pl.From] = true, true
		}
	}
	return kafka.Describe(ctx, w.Kafka, slices.Sorted(maps.Keys(names)), slices.Sorted(maps.Keys(groups)), nil)
}

// topics compares the topics of the cluster with the declared ones.
func (p *plan) topics(ctx context.Context, w *worker.Worker, cluster kafka.Description) error {
	var missing []kafka.TopicSpec
	for _, spec := range declaredTopics(w.Topology, cluster) {
		have, ok := cluster.Topics[spec.Name]
		switch {
		case cluster.Hidden[spec.Name] != nil:
			p.refuse(editHidden, spec.Name, "grant DESCRIBE on the topic", "topic %s cannot be described: %v", spec.Name, cluster.Hidden[spec.Name])
		case !ok:
			missing = append(missing, spec)
		case spec.Partitions > 0 && have.Partitions != spec.Partitions:
			hint := fmt.Sprintf("declare %d, or create a topic with another name and send the events there", have.Partitions)
			if w.Topology.Topic(spec.Name) == nil { // a state topic
				hint = "delete the topic while no worker runs; the stage then starts with empty state"
			}
			p.refuse(editPartitions, spec.Name, hint, "topic %s has %s, but needs %d: a change would move keys to other partitions", spec.Name, cli.Plural(have.Partitions, "partition"), spec.Partitions)
		default:
			p.config(w, spec, have)
			p.replaced(w.Topology, have)
		}
	}
	for _, t := range w.Topology.Topics {
		// The projector creates these topics, and sets nothing of one that exists.
		if have, ok := cluster.Topics[t.Name]; ok && t.Snapshots != nil && len(t.Config) > 0 {
			p.config(w, kafka.TopicSpec{Name: t.Name, Partitions: t.Partitions, Config: t.Config}, have)
		}
	}
	gaps(w.Topology.Pipelines, cluster, func(topic, why string) { p.note("topic:"+topic, "%s", why) })
	faults, err := kafka.CheckTopics(ctx, w.Kafka, missing)
	if err != nil {
		return err
	}
	for _, spec := range missing {
		if err := faults[spec.Name]; err != nil {
			p.refuse(editCreate, spec.Name, "create it as a user with the permission to do so", "topic %s cannot be created: %v", spec.Name, err)
			continue
		}
		text := "with " + partitionsText(spec.Partitions)
		for _, key := range slices.Sorted(maps.Keys(spec.Config)) {
			text += fmt.Sprintf(", %s=%s", key, spec.Config[key])
		}
		p.Steps = append(p.Steps, step{doCreate, spec.Name, text, func(ctx context.Context) error {
			_, err := kafka.EnsureTopics(ctx, w.Kafka, []kafka.TopicSpec{spec}, true)
			return err
		}})
	}
	return nil
}

// config compares the configuration of a topic with the declared one.
func (p *plan) config(w *worker.Worker, spec kafka.TopicSpec, have kafka.TopicState) {
	if have.Config == nil {
		if len(spec.Config) > 0 {
			p.note("topic:"+spec.Name, "its configuration is not visible, so it is not compared: grant DESCRIBE_CONFIGS")
		}
		return
	}
	set := map[string]string{}
	var texts []string
	for _, key := range slices.Sorted(maps.Keys(spec.Config)) {
		want := spec.Config[key]
		got, ok := have.Config[key]
		if ok && got == want {
			continue
		}
		set[key] = want
		texts = append(texts, fmt.Sprintf("%s %s -> %s", key, orNotSet(got, ok), want))
		if why := losesRecords(key, got, ok, want); why != "" {
			p.refuse(editConfig, spec.Name+"/"+key, "keep the current value, or make sure that no reader needs these records", "topic %s: %s", spec.Name, why)
		}
	}
	if p.Applied != nil {
		for _, key := range slices.Sorted(maps.Keys(p.Applied.Topics[spec.Name].Config)) {
			if _, still := spec.Config[key]; !still {
				p.note("topic:"+spec.Name, "%s is no longer declared; its value stays %s", key, orNotSet(have.Config[key], have.Config[key] != ""))
			}
		}
	}
	if len(set) > 0 {
		p.Steps = append(p.Steps, step{doConfig, spec.Name, strings.Join(texts, ", "), func(ctx context.Context) error {
			return kafka.SetTopicConfig(ctx, w.Kafka, spec.Name, set)
		}})
	}
}

// losesRecords returns why a setting makes brokers delete records that they keep
// now, or "" if it does not. set tells whether the topic has a value of its own,
// which is got.
func losesRecords(key, got string, set bool, want string) string {
	switch key {
	case "cleanup.policy":
		if got == "" {
			got = "delete" // Kafka's default
		}
		switch had, has := strings.Contains(got, "compact"), strings.Contains(want, "compact"); {
		case !had && has:
			return "with " + key + "=" + want + " only the last record of each key is kept"
		case !strings.Contains(got, "delete") && strings.Contains(want, "delete"):
			return "with " + key + "=" + want + " old records are deleted, which are kept now"
		}
	case "retention.ms", "retention.bytes":
		now, err1 := strconv.ParseInt(want, 10, 64)
		before, err2 := strconv.ParseInt(got, 10, 64)
		if set && err1 == nil && err2 == nil && now >= 0 && (before < 0 || now < before) {
			return fmt.Sprintf("%s would change from %s to %s: older records are deleted immediately", key, got, want)
		}
	}
	return ""
}

// replaced compares a source topic with the topic at the last apply.
func (p *plan) replaced(t *topology.Topology, have kafka.TopicState) {
	if p.Applied == nil {
		return
	}
	was, ok := p.Applied.Topics[have.Name]
	if !ok || !slices.ContainsFunc(t.Pipelines, func(pl *topology.Pipeline) bool { return pl.From.Name == have.Name }) {
		return
	}
	switch {
	case was.ID != have.ID:
		p.refuse(editRecreated, have.Name, "reset the offsets of its groups to the start if all events of the new topic must be read",
			"topic %s was deleted and created again after the last apply: committed offsets belong to the old topic", have.Name)
	case was.Partitions != have.Partitions:
		p.refuse(editPartitionsChanged, have.Name, "allow it if neither the order of events with one key nor the state of stages matters across the change",
			"topic %s had %s at the last apply and has %d now: keys have moved to other partitions", have.Name, cli.Plural(was.Partitions, "partition"), have.Partitions)
	}
}

// schemas plans the registration of output schemas, and returns the ids of the
// registered ones by subject.
func (p *plan) schemas(ctx context.Context, w *worker.Worker) (map[string]int, error) {
	ids := map[string]int{}
	planned := map[string]bool{}
	for _, pl := range w.Topology.Pipelines {
		for i, s := range pl.Output {
			for _, topic := range pl.Targets[i] {
				subject := topic.Subject(s)
				if planned[subject] {
					continue
				}
				planned[subject] = true
				if err := p.schema(ctx, w, topic, s, ids); err != nil {
					return nil, err
				}
			}
		}
	}
	return ids, nil
}

// schema plans the registration of one schema, or adds its id to ids.
func (p *plan) schema(ctx context.Context, w *worker.Worker, topic *topology.Topic, s *codec.Schema, ids map[string]int) error {
	subject := topic.Subject(s)
	id, err := w.Registry.Lookup(ctx, subject, s)
	if err == nil {
		ids[subject] = id
		return nil
	}
	state, text, err := outputState(ctx, w.Registry, subject, s)
	switch {
	case err != nil:
		return err
	case state == stateFault:
		p.refuse(editSchema, subject, "keep the old fields and give new fields defaults, or write to another topic", "%s", text)
	default:
		p.Steps = append(p.Steps, step{doRegister, subject, "compatible with the registered versions", func(ctx context.Context) error {
			_, err := event.EnsureSchema(ctx, w.Registry, subject, s, true)
			return err
		}})
	}
	return nil
}
