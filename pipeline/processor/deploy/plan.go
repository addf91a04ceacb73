// Package deploy compares a topology with the cluster: `processor plan`, `apply`
// and `dry-run`.
//
// Start at [PlanCommand] and [DryRunCommand]. deployment.go is the record of what
// was applied last.
package deploy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// ExitChanges is what plan --exit-code ends with if there is something to do.
const ExitChanges = 3

func PlanCommand(e *cli.Env) *cobra.Command {
	c := &planner{env: e}
	exitCode := false
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show what this topology would change in what runs, and what is unsafe",
		Long: `Compares the topology with the cluster, with the registry, and with the topology
that was applied last, which stands on the compacted topic NAME-control. It shows
what apply would do: create topics, set their configuration, register schemas. It
changes nothing.

An edit that loses something is refused, with the reason and what to do: a stage
that remembers and was renamed, a pipeline that reads another topic or is removed
before it has read everything, retention that becomes shorter, a schema that is
incompatible. What is meant can be allowed by its name; what could not work at
all cannot.

Workers neither need this nor look at it: run creates topics and registers
schemas by itself. If nothing was applied yet, only cluster and registry are
compared.

Exit code 0 if nothing is refused; 1 if something is; 2 if the command line or
the topology is wrong; with --exit-code 3 if there is something to do.`,
		Example: `  processor plan
  processor plan --allow orphaned-state:enrich/dedupe
  processor plan --json --exit-code`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, _, err := c.plan(cmd.Context())
			if err != nil {
				return err
			}
			if err := c.show(p, false); err != nil {
				return err
			}
			switch {
			case p.refused():
				return &cli.ExitError{Code: cli.ExitFailure}
			case exitCode && len(p.Steps) > 0:
				return &cli.ExitError{Code: ExitChanges}
			}
			return nil
		},
	}
	c.addFlags(cmd)
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "end with 3 if there is something to do")
	return cmd
}

func ApplyCommand(e *cli.Env) *cobra.Command {
	c := &planner{env: e}
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Do what plan shows, unless something is refused",
		Long: `Makes a plan, as the command plan does. If nothing in it is refused, it creates
topics, sets what the topology declares of their configuration, registers schemas,
and writes down on the topic NAME-control what was applied, in this order. What is
done already is not done again: after a failure, apply once more.

It starts and stops no workers, deletes nothing, and moves no offsets.

Exit code 0 if all was done or nothing was to do; 1 if something is refused, in
which case nothing was done, or failed; 2 if the command line or the topology is
wrong.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.apply(cmd.Context()) },
	}
	c.addFlags(cmd)
	return cmd
}

type planner struct {
	env    *cli.Env
	remote *worker.RemoteFlags
	allow  []string
	json   bool
}

func (c *planner) addFlags(cmd *cobra.Command) {
	c.remote = worker.AddRemoteFlags(c.env, cmd.Flags())
	cmd.Flags().StringSliceVar(&c.allow, "allow", nil, "do not refuse the edit of this `name`; again for each")
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
}

// plan is what there is to do, and what is unsafe about it.
type plan struct {
	Topology string      `json:"topology"`
	Hash     string      `json:"hash"`
	Applied  *deployment `json:"applied"` // last; null if never
	Steps    []step      `json:"steps"`
	Notes    []planNote  `json:"notes"`
	Refused  []refusal   `json:"refused"`

	record *deployment
}

// step is one thing that apply does.
type step struct {
	Do   string `json:"do"`
	Name string `json:"name"`
	Text string `json:"text"`

	run func(context.Context) error
}

// What steps do.
const (
	doCreate   = "create topic"
	doConfig   = "set config of topic"
	doRegister = "register schema"
	doRecord   = "write down"
)

// planNote is something to know that is no step.
type planNote struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// refusal is an edit that is unsafe.
type refusal struct {
	Name      string `json:"name"` // for --allow
	Why       string `json:"why"`
	Hint      string `json:"hint"` // what to do
	Allowable bool   `json:"allowable"`
	Allowed   bool   `json:"allowed"`
}

func (p *plan) refused() bool {
	return slices.ContainsFunc(p.Refused, func(r refusal) bool { return !r.Allowed })
}

func (p *plan) note(name, format string, args ...any) {
	p.Notes = append(p.Notes, planNote{name, fmt.Sprintf(format, args...)})
}

// unsafe refuses an edit that can be allowed.
func (p *plan) unsafe(name, hint, format string, args ...any) {
	p.Refused = append(p.Refused, refusal{Name: name, Hint: hint, Why: fmt.Sprintf(format, args...), Allowable: true})
}

// impossible refuses one that cannot.
func (p *plan) impossible(name, hint, format string, args ...any) {
	p.Refused = append(p.Refused, refusal{Name: name, Hint: hint, Why: fmt.Sprintf(format, args...)})
}

func (c *planner) plan(ctx context.Context) (*plan, *worker.Worker, error) {
	w, err := c.remote.Open()
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(w.Kafka.Ping(ctx), w.Registry.Ping(ctx)); err != nil {
		return nil, nil, err
	}
	applied, err := readDeployment(ctx, w)
	if err != nil {
		return nil, nil, err
	}
	p := &plan{Topology: w.Topology.Name, Hash: w.Topology.Hash(), Applied: applied, Steps: []step{}, Notes: []planNote{}, Refused: []refusal{}}
	cluster, err := describeDeployed(ctx, w, applied)
	if err != nil {
		return nil, nil, err
	}
	if err := p.topics(ctx, w, cluster); err != nil {
		return nil, nil, err
	}
	ids, err := p.schemas(ctx, w)
	if err != nil {
		return nil, nil, err
	}
	if applied != nil {
		if err := p.edits(ctx, w, cluster); err != nil {
			return nil, nil, err
		}
	}
	p.record = deploy(w.Topology, cluster, ids)
	if len(p.Steps) > 0 || !p.record.same(applied) {
		text := "what is applied"
		if applied == nil {
			text += ", for the first time"
		}
		p.Steps = append(p.Steps, step{doRecord, control.Topic(w.Topology), text, func(ctx context.Context) error { return writeDeployment(ctx, c.env, w) }})
	}
	for i := range p.Refused {
		r := &p.Refused[i]
		r.Allowed = r.Allowable && slices.Contains(c.allow, r.Name)
	}
	for _, name := range c.allow {
		i := slices.IndexFunc(p.Refused, func(r refusal) bool { return r.Name == name })
		switch {
		case i < 0:
			p.note("allow", "nothing of the name %s is refused", name)
		case !p.Refused[i].Allowable:
			p.note("allow", "%s cannot be allowed: it would not work", name)
		}
	}
	return p, w, nil
}

// describeDeployed asks for all that the topology names, and that it named when
// it was applied.
func describeDeployed(ctx context.Context, w *worker.Worker, applied *deployment) (kafka.Description, error) {
	names, groups := map[string]bool{control.Topic(w.Topology): true}, map[string]bool{}
	for _, spec := range declaredTopics(w.Topology, kafka.Description{}) {
		names[spec.Name] = true
	}
	for _, pl := range w.Topology.Pipelines {
		groups[w.Topology.Group(pl)] = true
	}
	if applied != nil {
		for name := range applied.Topics {
			names[name] = true
		}
		for name := range applied.Pipelines {
			groups[applied.Name+"-"+name] = true
		}
	}
	return kafka.Describe(ctx, w.Kafka, slices.Sorted(maps.Keys(names)), slices.Sorted(maps.Keys(groups)), nil)
}

// topics compares topics with how they are declared.
func (p *plan) topics(ctx context.Context, w *worker.Worker, cluster kafka.Description) error {
	var missing []kafka.TopicSpec
	for _, spec := range declaredTopics(w.Topology, cluster) {
		have, ok := cluster.Topics[spec.Name]
		switch {
		case cluster.Hidden[spec.Name] != nil:
			p.impossible("topic:"+spec.Name, "allow DESCRIBE on it", "topic %s cannot be seen: %v", spec.Name, cluster.Hidden[spec.Name])
		case !ok:
			missing = append(missing, spec)
		case spec.Partitions > 0 && have.Partitions != spec.Partitions:
			hint := fmt.Sprintf("declare it with %d, or make a topic of another name and send the events there", have.Partitions)
			if w.Topology.Topic(spec.Name) == nil {
				hint = "delete the topic while no worker runs; the stage then begins anew, remembering nothing"
			}
			p.impossible("partitions:"+spec.Name, hint, "topic %s has %s, and would have to have %d: keys would move", spec.Name, cli.Plural(have.Partitions, "partition"), spec.Partitions)
		default:
			p.config(w, spec, have)
			p.moved(w.Topology, have)
		}
	}
	faults, err := kafka.CheckTopics(ctx, w.Kafka, missing)
	if err != nil {
		return err
	}
	for _, spec := range missing {
		if err := faults[spec.Name]; err != nil {
			p.impossible("create:"+spec.Name, "let somebody create it who may", "topic %s cannot be created: %v", spec.Name, err)
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

// config compares what is set for a topic.
func (p *plan) config(w *worker.Worker, spec kafka.TopicSpec, have kafka.TopicState) {
	if have.Config == nil {
		if len(spec.Config) > 0 {
			p.note("topic:"+spec.Name, "its configuration cannot be seen, and is not compared: allow DESCRIBE_CONFIGS")
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
		texts = append(texts, fmt.Sprintf("%s %s -> %s", key, orDefault(got, ok), want))
		if why := losesRecords(key, got, ok, want); why != "" {
			p.unsafe("config:"+spec.Name+"/"+key, "leave it as it is, or be sure that nobody needs those records", "topic %s: %s", spec.Name, why)
		}
	}
	if p.Applied != nil {
		for _, key := range slices.Sorted(maps.Keys(p.Applied.Topics[spec.Name].Config)) {
			if _, still := spec.Config[key]; !still {
				p.note("topic:"+spec.Name, "%s is no longer declared; it stays at %s", key, orDefault(have.Config[key], have.Config[key] != ""))
			}
		}
	}
	if len(set) > 0 {
		p.Steps = append(p.Steps, step{doConfig, spec.Name, strings.Join(texts, ", "), func(ctx context.Context) error {
			return kafka.SetTopicConfig(ctx, w.Kafka, spec.Name, set)
		}})
	}
}

// losesRecords says why a setting makes brokers delete records that they would
// keep, "" if it does not.
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
			return "with " + key + "=" + want + " old records are deleted, which are all kept now"
		}
	case "retention.ms", "retention.bytes":
		now, err1 := strconv.ParseInt(want, 10, 64)
		before, err2 := strconv.ParseInt(got, 10, 64)
		if set && err1 == nil && err2 == nil && now >= 0 && (before < 0 || now < before) {
			return fmt.Sprintf("%s is %s and would be %s: older records are deleted at once", key, got, want)
		}
	}
	return ""
}

// moved compares a topic with what it was when it was applied.
func (p *plan) moved(t *topology.Topology, have kafka.TopicState) {
	if p.Applied == nil {
		return
	}
	was, ok := p.Applied.Topics[have.Name]
	if !ok || !slices.ContainsFunc(t.Pipelines, func(pl *topology.Pipeline) bool { return pl.From.Name == have.Name }) {
		return
	}
	switch {
	case was.ID != have.ID:
		p.unsafe("recreated:"+have.Name, "reset the offsets of its groups to the start, if all events of the new one are to be read", "topic %s was deleted and made anew since it was applied: committed offsets are those of the old one", have.Name)
	case was.Partitions != have.Partitions:
		p.unsafe("partitions-changed:"+have.Name, "keep it if the order of events of one key, and what stages remember of them, does not matter across the change", "topic %s had %s when it was applied and has %d now: keys have moved", have.Name, cli.Plural(was.Partitions, "partition"), have.Partitions)
	}
}

// schemas finds what is to be registered, and returns the ids of what is.
func (p *plan) schemas(ctx context.Context, w *worker.Worker) (map[string]int, error) {
	ids := map[string]int{}
	planned := map[string]bool{}
	for _, pl := range w.Topology.Pipelines {
		for i, s := range pl.Output {
			for _, topic := range pl.Targets[i] {
				subject := codec.Subject(topic.Name, s)
				if planned[subject] {
					continue
				}
				planned[subject] = true
				id, err := w.Registry.Lookup(ctx, subject, s)
				if err == nil {
					ids[subject] = id
					continue
				}
				state, text, err := outputState(ctx, w.Registry, subject, s)
				switch {
				case err != nil:
					return nil, err
				case state == stateFault:
					p.impossible("schema:"+subject, "keep the old fields, and give new ones defaults; or write to another topic", "%s", text)
				default:
					p.Steps = append(p.Steps, step{doRegister, subject, "compatible with what is there", func(ctx context.Context) error {
						_, err := event.SchemaID(ctx, w.Registry, topic.Name, s, true)
						return err
					}})
				}
			}
		}
	}
	return ids, nil
}

// edits compares the topology with the one that was applied.
func (p *plan) edits(ctx context.Context, w *worker.Worker, cluster kafka.Description) error {
	t := w.Topology
	states := map[string]bool{}
	for _, pl := range t.Pipelines {
		for _, s := range chain.StateTopics(t, pl, 0) {
			states[s.Name] = true
		}
	}
	byName := map[string]*topology.Pipeline{}
	for _, pl := range t.Pipelines {
		byName[pl.Name] = pl
		if _, was := p.Applied.Pipelines[pl.Name]; !was {
			p.note("pipeline:"+pl.Name, "it is new: it begins at the start of %s", pl.From.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Applied.Pipelines)) {
		was, pl := p.Applied.Pipelines[name], byName[name]
		if pl == nil {
			if err := p.removed(ctx, w, name, was); err != nil {
				return err
			}
			continue
		}
		p.changed(was, pl)
		for _, s := range was.Stages {
			if _, there := cluster.Topics[s.State]; s.State == "" || states[s.State] || !there {
				continue
			}
			hint := fmt.Sprintf("give the stage the name %s again; if it is to be gone, delete the topic %s later", s.Name, s.State)
			p.unsafe("orphaned-state:"+name+"/"+s.Name, hint, "stage %s of pipeline %s is gone or has another name: what it remembers, on topic %s, would be of no use to anybody%s", s.Name, name, s.State, renamed(was, pl))
		}
		if g := cluster.Groups[p.Applied.Name+"-"+name]; g.Members > 0 && p.Applied.Hash != p.Hash {
			p.note("pipeline:"+name, "%s at work by the topology that they began with: restart them after apply", map[bool]string{true: "1 session is", false: fmt.Sprintf("%d sessions are", g.Members)}[g.Members == 1])
		}
	}
	for _, proj := range t.Projections {
		was, ok := p.Applied.Folds[proj.Name]
		if ok && was.Fold != proj.Fold.Hash() {
			p.note("projection:"+proj.Name, "its fold is another: the version that is live goes on until `projector rebuild %s` has built this one, and `projector promote %s` lets it answer", proj.Name, proj.Name)
		}
	}
	return nil
}

// renamed says which stage may be the one that is gone.
func renamed(was deployedPipeline, pl *topology.Pipeline) string {
	for _, s := range pl.Stages {
		_, keeps := s.Built.(stage.Keeper)
		if keeps && !slices.ContainsFunc(was.Stages, func(old deployedStage) bool { return old.Name == s.Name }) {
			return ", and " + s.Name + " would begin remembering nothing"
		}
	}
	return ""
}

// removed is about a pipeline that is not there any more.
func (p *plan) removed(ctx context.Context, w *worker.Worker, name string, was deployedPipeline) error {
	group := p.Applied.Name + "-" + name
	lag := int64(0)
	if _, there := p.Applied.Topics[was.From]; there {
		var err error
		if lag, err = kafka.Lag(ctx, w.Kafka, group, was.From); err != nil {
			return err
		}
	}
	if lag > 0 {
		p.unsafe("removed:"+name, "let it read to the end before it is removed; if it was renamed, give it its old name: a new one begins at the start of the topic",
			"pipeline %s is gone, but its group %s has yet to read %d offsets of %s", name, group, lag, was.From)
	} else {
		p.note("pipeline:"+name, "it is gone, and has read everything; its group %s can be deleted", group)
	}
	for _, s := range was.Stages {
		if s.State != "" {
			p.note("pipeline:"+name, "what its stage %s remembered is on topic %s, which can be deleted", s.Name, s.State)
		}
	}
	return nil
}

// changed is about a pipeline that was there before.
func (p *plan) changed(was deployedPipeline, pl *topology.Pipeline) {
	if was.From != pl.From.Name {
		p.unsafe("from:"+pl.Name, "make a pipeline of another name for "+pl.From.Name+", and remove this one when it has read everything",
			"pipeline %s read %s and would read %s: its offsets and what its stages remember do not carry over, and what it has not read of %s would not be read", pl.Name, was.From, pl.From.Name, was.From)
	}
	if was.Guarantee != pl.Guarantee && pl.Guarantee == topology.AtLeastOnce {
		p.unsafe("guarantee:"+pl.Name, "leave it at "+was.Guarantee, "pipeline %s would write %s: after a crash, events may come out twice", pl.Name, pl.Guarantee)
	} else if was.Guarantee != pl.Guarantee {
		p.note("pipeline:"+pl.Name, "guarantee: %s -> %s", was.Guarantee, pl.Guarantee)
	}
	var to []string
	for _, t := range pl.Writes() {
		to = append(to, t.Name)
	}
	if !reflect.DeepEqual(was.To, to) {
		p.note("pipeline:"+pl.Name, "it wrote to %s, and will write to %s", strings.Join(was.To, ", "), strings.Join(to, ", "))
	}
	if was.DeadLetter != pl.DeadLetter.Name {
		p.note("pipeline:"+pl.Name, "dead letters went to %s, and will go to %s", was.DeadLetter, pl.DeadLetter.Name)
	}
	receipts := ""
	if pl.Receipts != nil {
		receipts = pl.Receipts.Name
	}
	if was.Receipts != receipts {
		p.note("pipeline:"+pl.Name, "receipts went to %s, and will go to %s", cmp.Or(was.Receipts, "nowhere"), cmp.Or(receipts, "nowhere"))
	}
	for _, s := range pl.Stages {
		i := slices.IndexFunc(was.Stages, func(old deployedStage) bool { return old.Name == s.Name })
		if i < 0 {
			p.note("stage:"+pl.Name+"/"+s.Name, "it is new")
			continue
		}
		before, err := time.ParseDuration(cmp.Or(was.Stages[i].Remembers, "0s"))
		switch now := stage.Remembers(s.Built); {
		case err != nil || before == now || was.Stages[i].State == "":
		case now > before:
			p.note("stage:"+pl.Name+"/"+s.Name, "it remembers %v instead of %v; what it has forgotten already stays forgotten, so this is so only after %v more", now, before, now-before)
		default:
			p.note("stage:"+pl.Name+"/"+s.Name, "it remembers %v instead of %v: what is older is forgotten", now, before)
		}
	}
	for _, old := range was.Stages {
		if old.State == "" && !slices.ContainsFunc(pl.Stages, func(s topology.Stage) bool { return s.Name == old.Name }) {
			p.note("stage:"+pl.Name+"/"+old.Name, "it is gone")
		}
	}
}

func (c *planner) apply(ctx context.Context) error {
	p, _, err := c.plan(ctx)
	if err != nil {
		return err
	}
	if p.refused() {
		if err := c.show(p, true); err != nil {
			return err
		}
		return &cli.ExitError{Code: cli.ExitFailure}
	}
	for i, s := range p.Steps {
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("%s %s: %w; %d of %d steps were done: apply once more", s.Do, s.Name, err, i, len(p.Steps))
		}
	}
	return c.show(p, true)
}

// show prints a plan; applied says that it was to be done.
func (c *planner) show(p *plan, applied bool) error {
	if c.json {
		return cli.PrintJSON(c.env.Stdout, struct {
			*plan
			Done bool `json:"done"`
		}{p, applied && !p.refused()})
	}
	return p.print(c.env.Stdout, applied)
}

func (p *plan) print(w io.Writer, applied bool) error {
	out := cli.Printer{Out: w}
	if p.Applied == nil {
		out.Line("topology %s (%.8s); nothing was applied yet", p.Topology, p.Hash)
	} else {
		out.Line("topology %s (%.8s); applied was %.8s, %s, by %s", p.Topology, p.Hash, p.Applied.Hash, p.Applied.Time.Format(time.RFC3339), p.Applied.By)
	}
	signs := map[string]string{doCreate: "+", doRegister: "+", doConfig: "~", doRecord: "~"}
	for _, s := range p.Steps {
		out.Line("  %s %s %s: %s", signs[s.Do], s.Do, s.Name, s.Text)
	}
	for _, n := range p.Notes {
		out.Line("  . %s: %s", n.Name, n.Text)
	}
	refused := 0
	for _, r := range p.Refused {
		if r.Allowed {
			out.Line("  ! allowed: %s: %s", r.Name, r.Why)
			continue
		}
		refused++
		out.Line("  ! refused: %s", r.Name)
		out.Prose("      ", r.Why)
		out.Prose("      ", "Do: "+r.Hint+".")
		if r.Allowable {
			out.Line("      Or, if it is meant: --allow %s", r.Name)
		}
	}
	counts := map[string]int{}
	for _, s := range p.Steps {
		counts[s.Do]++
	}
	switch {
	case refused > 0 && applied:
		out.Line("%s refused: nothing was done", cli.Plural(refused, "edit"))
	case refused > 0:
		out.Line("%s refused", cli.Plural(refused, "edit"))
	case len(p.Steps) == 0:
		out.Line("nothing to do")
	default:
		var parts []string
		for _, do := range slices.Sorted(maps.Keys(counts)) {
			parts = append(parts, fmt.Sprintf("%s: %d", do, counts[do]))
		}
		out.Line("%s %s", map[bool]string{true: "done:", false: "to do:"}[applied], strings.Join(parts, ", "))
	}
	return out.Err
}
