package deploy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// States of findings.
const (
	stateOK    = "ok"
	stateNew   = "new"  // a worker would create it
	stateNote  = "note" // it works, but may be unintended
	stateFault = "fault"
)

// A finding is the result of one check.
type finding struct {
	What  string `json:"check"`
	State string `json:"state"`
	Text  string `json:"text"`
}

// An inspection checks everything that pipelines need, without side effects.
type inspection struct {
	worker   *worker.Worker
	instance string // part of transactional ids

	cluster kafka.Description
	usable  bool // the brokers and the registry are reachable
	found   []finding
}

func (in *inspection) report(state, what, format string, args ...any) {
	in.found = append(in.found, finding{what, state, fmt.Sprintf(format, args...)})
}

// A use is a topic with the operations that pipelines need on it.
type use struct {
	spec kafka.TopicSpec
	ops  []string // names of Kafka's ACL operations
}

// uses returns the topics that pipelines use, without duplicates and state topics.
func (in *inspection) uses(pipelines []*topology.Pipeline) (all []*use) {
	add := func(spec kafka.TopicSpec, ops ...string) {
		i := slices.IndexFunc(all, func(u *use) bool { return u.spec.Name == spec.Name })
		if i < 0 {
			i = len(all)
			all = append(all, &use{spec: spec})
		}
		for _, op := range ops {
			if !slices.Contains(all[i].ops, op) {
				all[i].ops = append(all[i].ops, op)
			}
		}
	}
	for _, pl := range pipelines {
		add(worker.TopicSpecs(pl.From)[0], "READ", "DESCRIBE")
		for _, t := range append(pl.Writes(), pl.SideTopics()...) {
			add(worker.TopicSpecs(t)[0], "WRITE", "DESCRIBE")
		}
	}
	for _, t := range chain.TablesOf(in.worker.Topology, pipelines...) {
		if t.Topic != nil {
			add(worker.TopicSpecs(t.Topic)[0], "READ", "DESCRIBE")
		}
	}
	return all
}

// check checks the brokers, the registry, topics, schemas, groups and transactional
// ids. It sets cluster, usable and found.
func (in *inspection) check(ctx context.Context, pipelines []*topology.Pipeline) error {
	if err := in.worker.Kafka.Ping(ctx); err != nil {
		in.report(stateFault, "brokers", "%v", err)
	}
	if err := in.worker.Registry.Ping(ctx); err != nil {
		in.report(stateFault, "registry", "%v", err)
	}
	if len(in.found) > 0 {
		return nil
	}
	uses := in.uses(pipelines)
	var topics, groups, txns []string
	for _, u := range uses {
		topics = append(topics, u.spec.Name)
	}
	for _, pl := range pipelines {
		for _, s := range chain.StateTopics(in.worker.Topology, pl, 0) {
			topics = append(topics, s.Name)
		}
		groups = append(groups, in.worker.Topology.Group(pl))
		if pl.Guarantee == topology.ExactlyOnce {
			txns = append(txns, in.worker.Topology.Group(pl)+"-"+in.instance+"-0")
		}
	}
	var err error
	if in.cluster, err = kafka.Describe(ctx, in.worker.Kafka, topics, groups, txns); err != nil {
		in.report(stateFault, "brokers", "%v", err)
		return nil
	}
	in.usable = true
	in.report(stateOK, "brokers", "cluster %s is reachable", in.cluster.ID)
	in.report(stateOK, "registry", "it is reachable")
	for _, pl := range pipelines {
		partitions := in.cluster.Topics[pl.From.Name].Partitions
		if partitions == 0 {
			partitions = pl.From.Partitions
		}
		for _, s := range chain.StateTopics(in.worker.Topology, pl, partitions) {
			uses = append(uses, &use{s, []string{"READ", "WRITE", "DESCRIBE", "DELETE"}})
		}
	}
	if err := in.checkTopics(ctx, uses); err != nil {
		return err
	}
	gaps(pipelines, in.cluster, func(topic, why string) { in.report(stateNote, "topic "+topic, "%s", why) })
	for _, pl := range pipelines {
		if err := in.checkSchemas(ctx, pl); err != nil {
			return err
		}
	}
	for _, g := range groups {
		in.checkGroup(g)
	}
	for _, id := range txns {
		if err := in.cluster.Hidden[id]; err != nil {
			in.report(stateFault, "transactional id "+id, "%v: grant WRITE and DESCRIBE on it", err)
		} else {
			in.report(stateOK, "transactional id "+id, "it can be described; the cluster does not report whether WRITE is granted")
		}
	}
	return nil
}

// checkTopics checks topics: their partitions, permissions and configuration, and
// whether missing ones could be created.
func (in *inspection) checkTopics(ctx context.Context, uses []*use) error {
	var missing []kafka.TopicSpec
	for _, u := range uses {
		what := "topic " + u.spec.Name
		have, ok := in.cluster.Topics[u.spec.Name]
		switch {
		case in.cluster.Hidden[u.spec.Name] != nil:
			in.report(stateFault, what, "%v: grant DESCRIBE on it", in.cluster.Hidden[u.spec.Name])
		case !ok:
			missing = append(missing, u.spec)
		case u.spec.Partitions > 0 && have.Partitions != u.spec.Partitions:
			in.report(stateFault, what, "it has %s, but is declared with %d: a change would move keys; declare the actual number", cli.Plural(have.Partitions, "partition"), u.spec.Partitions)
		default:
			in.checkTopic(u, have)
		}
	}
	faults, err := kafka.CheckTopics(ctx, in.worker.Kafka, missing)
	if err != nil {
		return err
	}
	for _, spec := range missing {
		if err := faults[spec.Name]; err != nil {
			in.report(stateFault, "topic "+spec.Name, "it does not exist, and cannot be created: %v", err)
			continue
		}
		in.report(stateNew, "topic "+spec.Name, "it does not exist; a worker would create it with %s", partitionsText(spec.Partitions))
	}
	return nil
}

// checkTopic checks an existing topic with the right number of partitions.
func (in *inspection) checkTopic(u *use, have kafka.TopicState) {
	what := "topic " + u.spec.Name
	if lack := have.Allowed.Missing(u.ops...); len(lack) > 0 {
		in.report(stateFault, what, "this user may not %s: grant it", strings.Join(lack, ", "))
		return
	}
	limit := ""
	if have.Limit.Bytes > 0 && slices.Contains(u.ops, "WRITE") {
		limit = fmt.Sprintf(", records of %s bytes at most", cli.GroupDigits(int64(in.cluster.Limits().MaxRecord(u.spec.Name))))
	}
	in.report(stateOK, what, "%s%s", cli.Plural(have.Partitions, "partition"), limit)
	for _, key := range slices.Sorted(maps.Keys(u.spec.Config)) {
		if got, set := have.Config[key]; have.Config != nil && (!set || got != u.spec.Config[key]) {
			in.report(stateNote, what, "%s is %s, but is declared as %s: processor apply sets it", key, orNotSet(got, set), u.spec.Config[key])
		}
	}
}

func orNotSet(value string, set bool) string {
	if !set {
		return "not set"
	}
	return value
}

// partitionsText describes the number of partitions of a new topic. 0 leaves it to
// the brokers.
func partitionsText(n int) string {
	if n == 0 {
		return "the brokers' default number of partitions"
	}
	return cli.Plural(n, "partition")
}

// checkSchemas checks that the output schemas of a pipeline are registered or could
// be.
func (in *inspection) checkSchemas(ctx context.Context, pl *topology.Pipeline) error {
	for i, s := range pl.Output {
		for _, topic := range pl.Targets[i] {
			subject := topic.Subject(s)
			state, text, err := outputState(ctx, in.worker.Registry, subject, s)
			if err != nil {
				return err
			}
			in.report(state, "schema "+subject, "%s", text)
		}
	}
	return nil
}

// outputState reports whether a schema is registered or could be: stateOK, stateNew
// or stateFault, with a text.
func outputState(ctx context.Context, registry *codec.Registry, subject string, s *codec.Schema) (state, text string, err error) {
	id, err := registry.Lookup(ctx, subject, s)
	if err == nil {
		return stateOK, fmt.Sprintf("registered, id %d", id), nil
	}
	if !errors.Is(err, codec.ErrNotRegistered) {
		return "", "", err
	}
	switch err := registry.Compatible(ctx, subject, s); {
	case errors.Is(err, codec.ErrIncompatible):
		return stateFault, err.Error(), nil
	case err != nil:
		return "", "", err
	}
	return stateNew, "not registered yet, and compatible with the registered versions", nil
}

// checkGroup checks the permissions on a consumer group and reports its members.
func (in *inspection) checkGroup(name string) {
	what := "group " + name
	if err := in.cluster.Hidden[name]; err != nil {
		in.report(stateFault, what, "%v: grant READ and DESCRIBE on it", err)
		return
	}
	g := in.cluster.Groups[name]
	if lack := g.Allowed.Missing("READ", "DESCRIBE"); len(lack) > 0 {
		in.report(stateFault, what, "this user may not %s: grant it", strings.Join(lack, ", "))
		return
	}
	if len(g.Committed) == 0 && g.Members == 0 {
		in.report(stateNew, what, "no worker has run yet: a worker would start at the beginning of the source")
		return
	}
	in.report(stateOK, what, "%s", cli.Plural(g.Members, "member"))
}
