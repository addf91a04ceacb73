package processor

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// ExplainCommand returns `processor explain`.
func ExplainCommand(e *cli.Env) *cobra.Command {
	x := &explainer{env: e}
	cmd := &cobra.Command{
		Use:   "explain [PIPELINE...]",
		Short: "Show the resolved plan of a worker with these flags, without connecting",
		Long: `Shows the plan of the named pipelines, or of all: the fields that each stage reads
and writes, input and output schemas with their subjects, topics and their settings,
the guarantee, limits, and all permissions on Kafka that a worker needs. It takes the
flags of run and connects to nothing, except to the registry if --registry is given: then
it lists the schemas that the events of each type are written with, and how they are read:
identical, resolved (with the fields that are dropped, defaulted or converted, and the values
that reject their event), or unreadable.

With --subjects, it prints only the schemas of the whole topology that the programs write
with, one JSON object with subject and schema a line: for registering them before the programs
start, which then need no right to register. Later versions of a projection write to topics
of their own, and so need subjects of their own if the topic is part of the subject.

With --acls, it prints only the commands that grant these permissions. A worker needs
all of them except DescribeConfigs. Without DescribeConfigs, it does not know the size
limits of the topics and uses the default.`,
		Example: `  processor explain
  processor explain enrich --json
  processor explain --subjects > schemas.jsonl
  processor explain --acls --principal User:processor | sh`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return x.run(cmd.Context(), args, cmd.Flags().Changed("registry"))
		},
	}
	flags := cmd.Flags()
	x.worker = worker.AddFlags(e, flags, "processor", worker.ProcessorListen)
	for _, name := range []string{"log-level", "log-format", "listen", "listen-file", "pprof", "property", "command-config"} {
		flags.Lookup(name).Hidden = true // accepted and ignored, so all flags of run can be given
	}
	flags.BoolVar(&x.asJSON, "json", false, "print JSON")
	flags.BoolVar(&x.subjects, "subjects", false, "print the schemas that the programs write with, and their subjects")
	flags.BoolVar(&x.acls, "acls", false, "print the commands of kafka-acls.sh that grant the permissions of a worker")
	flags.StringVar(&x.principal, "principal", "User:processor", "`principal` of the permissions, for --acls")
	return cmd
}

type explainer struct {
	env       *cli.Env
	worker    *worker.Flags
	asJSON    bool
	acls      bool
	subjects  bool
	principal string
}

// explanation is the output of --json.
type explanation struct {
	Topology  string         `json:"topology"`
	Hash      string         `json:"hash"`
	Pipelines []pipelinePlan `json:"pipelines"`
}

// pipelinePlan is the plan of a worker for a pipeline.
type pipelinePlan struct {
	Name             string       `json:"name"`
	Guarantee        string       `json:"guarantee"`
	Reads            topicPlan    `json:"reads"`
	Stages           []stagePlan  `json:"stages"`
	Writes           []topicPlan  `json:"writes"`
	DeadLetters      topicPlan    `json:"dead_letters"`
	Receipts         *topicPlan   `json:"receipts,omitempty"`
	Tables           []tablePlan  `json:"tables"`
	State            []topicPlan  `json:"state"` // state topics
	Schemas          []schemaPlan `json:"schemas"`
	Group            string       `json:"group"`
	TransactionalIDs []string     `json:"transactional_ids"`
	Limits           limitsPlan   `json:"limits"`
	ACLs             []acl        `json:"acls"`
}

type topicPlan struct {
	Name        string            `json:"name"`
	Partitions  int               `json:"partitions"`
	Replication int               `json:"replication,omitempty"` // 0: the default of the brokers
	Config      map[string]string `json:"config,omitempty"`
	Types       []string          `json:"types,omitempty"` // event types that are read or written
	Note        string            `json:"note,omitempty"`  // something that is probably unintended
}

type tablePlan struct {
	Name   string `json:"name"`
	Topic  string `json:"topic,omitempty"`
	File   string `json:"file,omitempty"`
	Schema string `json:"schema"`
}

type stagePlan struct {
	Name    string      `json:"name"`
	Kind    string      `json:"kind"`
	On      []string    `json:"on"`  // event types that reach the stage
	All     bool        `json:"all"` // On has all types that earlier stages pass
	Reads   []fieldPlan `json:"reads"`
	Writes  []fieldPlan `json:"writes"`
	Stops   []string    `json:"stops,omitempty"`   // types whose events never pass
	Becomes []string    `json:"becomes,omitempty"` // the types that it gives the events of On, in its order
	Deletes bool        `json:"deletes,omitempty"` // it can make events tombstones
	Routes  []string    `json:"routes,omitempty"`  // topics that it can choose
	OnError string      `json:"on_error"`
	Holds   string      `json:"holds,omitempty"` // maximum delay of a batch
	State   string      `json:"state,omitempty"` // its state topic
}

// fieldPlan is a field that a stage uses. Types is empty if it uses the field in all of its
// types.
type fieldPlan struct {
	Path  string   `json:"path"`
	Types []string `json:"types,omitempty"`
}

type schemaPlan struct {
	Type    string   `json:"type"`
	Reads   string   `json:"reads"`             // subject in the registry
	Becomes string   `json:"becomes,omitempty"` // the type after all stages, if a stage gives another
	Writes  []string `json:"writes,omitempty"`  // subjects; none if no event of the type passes all stages
	Adds    []string `json:"adds,omitempty"`    // fields that the pipeline adds

	Writers []writerPlan `json:"writers,omitempty"` // schemas in the registry; only with --registry
}

// limitsPlan has the limits of a worker. Durations have the format of
// [time.Duration.String].
type limitsPlan struct {
	Sessions           int    `json:"sessions"`
	CommitInterval     string `json:"commit_interval"`
	TransactionTimeout string `json:"transaction_timeout"`
	SessionTimeout     string `json:"session_timeout"`
	HoldsUp            string `json:"holds_up,omitempty"`
	RecordBytes        int    `json:"record_bytes"` // for a topic whose limit is unknown
	MemoryBytes        int    `json:"memory_bytes"`
}

// run prints the plans, with the writers' schemas if writers is set.
func (x *explainer) run(ctx context.Context, names []string, writers bool) error {
	t, err := x.worker.Topology.Load(x.env)
	if err != nil {
		return err
	}
	if x.subjects {
		return printSubjects(x.env.Stdout, subjectsOf(t))
	}
	pipelines, err := worker.SelectPipelines(t, x.worker.Topology.File, names)
	if err != nil {
		return err
	}
	if x.worker.Instance == "" {
		if x.worker.Instance, err = os.Hostname(); err != nil {
			x.worker.Instance = "HOST"
		}
	}
	w := &worker.Worker{Flags: x.worker, Topology: t}
	out := explanation{Topology: t.Name, Hash: t.Hash(), Pipelines: []pipelinePlan{}}
	for _, pl := range pipelines {
		out.Pipelines = append(out.Pipelines, explainPipeline(w, pl))
	}
	if writers && !x.acls {
		if err := x.addWriters(ctx, pipelines, out.Pipelines); err != nil {
			fmt.Fprintln(x.env.Stderr, "the writers' schemas are not shown:", err)
		}
	}
	switch {
	case x.acls:
		return x.printACLs(out)
	case x.asJSON:
		return cli.PrintJSON(x.env.Stdout, out)
	}
	pr := cli.Printer{Out: x.env.Stdout}
	for i := range out.Pipelines {
		if i > 0 {
			pr.Line("")
		}
		printPipeline(&pr, &out.Pipelines[i])
	}
	return pr.Err
}

func (x *explainer) addWriters(ctx context.Context, pipelines []*topology.Pipeline, plans []pipelinePlan) error {
	registry, err := x.worker.OpenRegistry()
	if err != nil {
		return err
	}
	for i, pl := range pipelines {
		if err := addWriters(ctx, registry, pl, plans[i].Schemas); err != nil {
			return err
		}
	}
	return nil
}

// explainPipeline returns the plan of the worker for a pipeline.
func explainPipeline(w *worker.Worker, pl *topology.Pipeline) pipelinePlan {
	loop := w.LoopConfig(pl.Name, nil)
	plan := pipelinePlan{
		Name: pl.Name, Guarantee: pl.Guarantee, Group: loop.Group,
		Reads:       newTopicPlan(pl.From),
		DeadLetters: newTopicPlan(pl.DeadLetter),
		Tables:      []tablePlan{}, State: []topicPlan{}, TransactionalIDs: []string{},
		Limits: limitsPlan{
			Sessions: loop.Sessions, CommitInterval: loop.CommitInterval.String(), TransactionTimeout: loop.TransactionTimeout.String(),
			SessionTimeout: loop.SessionTimeout.String(), RecordBytes: kafka.Limits(nil).MaxRecord(""), MemoryBytes: cmp.Or(loop.Memory, kafka.DefaultMemory),
		},
		ACLs: pipelineACLs(w.Topology, pl, !w.Flags.NoCreateTopics),
	}
	plan.DeadLetters.Note = topology.RetentionGap(pl.From.Name, pl.From.Config, pl.DeadLetter.Config)
	if pl.Receipts != nil {
		receipts := newTopicPlan(pl.Receipts)
		plan.Receipts = &receipts
	}
	for _, s := range pl.Types {
		plan.Reads.Types = append(plan.Reads.Types, s.ShortName())
	}
	if hold := chain.HoldTime(pl); hold > 0 {
		plan.Limits.HoldsUp = hold.String()
	}
	if pl.Guarantee == topology.ExactlyOnce {
		for i := range loop.Sessions {
			plan.TransactionalIDs = append(plan.TransactionalIDs, fmt.Sprintf("%s-%s-%d", loop.Group, loop.Instance, i))
		}
	}
	for _, topic := range pl.Writes() {
		written := newTopicPlan(topic)
		written.Note = topology.RetentionGap(pl.From.Name, pl.From.Config, topic.Config)
		for i, targets := range pl.Targets {
			if slices.Contains(targets, topic) {
				if name := pl.Output[i].ShortName(); !slices.Contains(written.Types, name) {
					written.Types = append(written.Types, name)
				}
			}
		}
		plan.Writes = append(plan.Writes, written)
	}
	for _, t := range chain.TablesOf(w.Topology, pl) {
		one := tablePlan{Name: t.Name, File: t.File, Schema: t.Schema.Name()}
		if t.Topic != nil {
			one.Topic = t.Topic.Name
		}
		plan.Tables = append(plan.Tables, one)
	}
	for _, s := range chain.StateTopics(w.Topology, pl, pl.From.Partitions) {
		plan.State = append(plan.State, topicPlan{Name: s.Name, Partitions: s.Partitions, Replication: s.Replication, Config: s.Config})
	}
	plan.Stages = stagePlans(w.Topology, pl)
	for i := range pl.Types {
		plan.Schemas = append(plan.Schemas, newSchemaPlan(pl, i))
	}
	return plan
}

func stagePlans(t *topology.Topology, pl *topology.Pipeline) (plans []stagePlan) {
	reaching := len(pl.Types) // the number of types whose events reach the stage
	for i := range pl.Stages {
		plan := newStagePlan(t, pl, i)
		plan.All = len(plan.On) == reaching
		reaching -= len(plan.Stops)
		plans = append(plans, plan)
	}
	return plans
}

func newTopicPlan(t *topology.Topic) topicPlan {
	return topicPlan{Name: t.Name, Partitions: t.Partitions, Replication: t.Replication, Config: t.Config}
}

// newStagePlan returns the plan of the stage with the index at.
func newStagePlan(t *topology.Topology, pl *topology.Pipeline, at int) stagePlan {
	s := pl.Stages[at]
	plan := stagePlan{Name: s.Name, Kind: s.Kind.Name, On: []string{}, OnError: onErrorText(s.OnError)}
	reads, writes := newFieldUses(), newFieldUses()
	for i, on := range s.On {
		if !on {
			continue
		}
		name := pl.Sections[i].At(at).Schema.ShortName()
		if r, ok := s.Built.(stage.Reshaper); ok && r.Reshaped(i) != nil {
			plan.Becomes = append(plan.Becomes, r.Reshaped(i).ShortName())
			plan.Deletes = plan.Deletes || r.Deletes(i)
		}
		plan.On = append(plan.On, name)
		reads.add(name, s.Built.Reads(i))
		writes.add(name, stage.Sets(s.Built, i))
		if gate, ok := s.Built.(stage.Gate); ok && !gate.Passes(i) {
			plan.Stops = append(plan.Stops, name)
		}
	}
	plan.Reads, plan.Writes = reads.plans(len(plan.On)), writes.plans(len(plan.On))
	if router, ok := s.Built.(stage.Router); ok {
		plan.Routes = router.Topics()
	}
	if holder, ok := s.Built.(stage.Delayer); ok && holder.MaxDelay() > 0 {
		plan.Holds = holder.MaxDelay().String()
	}
	if _, ok := s.Built.(stage.Keeper); ok {
		plan.State = chain.StateTopic(t, pl, s.Name)
	}
	return plan
}

func onErrorText(o pipeline.OnError) string {
	switch o {
	case pipeline.Skip:
		return "skip"
	case pipeline.Stop:
		return "stop"
	}
	return "dead_letter"
}

// fieldUses maps the path of a field to the types in which a stage uses it.
type fieldUses struct{ types map[string][]string }

func newFieldUses() fieldUses { return fieldUses{map[string][]string{}} }

func (u fieldUses) add(typ string, paths [][]string) {
	for _, path := range paths {
		name := strings.Join(path, ".")
		if !slices.Contains(u.types[name], typ) {
			u.types[name] = append(u.types[name], typ)
		}
	}
}

// plans returns the fields in order. all is the number of types that reach the stage: a
// field that is used in all of them does not list them.
func (u fieldUses) plans(all int) []fieldPlan {
	out := []fieldPlan{}
	for _, path := range slices.Sorted(maps.Keys(u.types)) {
		f := fieldPlan{Path: path}
		if len(u.types[path]) < all {
			f.Types = u.types[path]
		}
		out = append(out, f)
	}
	return out
}

func newSchemaPlan(pl *topology.Pipeline, typ int) schemaPlan {
	in, out := pl.Types[typ], pl.Output[typ]
	plan := schemaPlan{Type: in.ShortName(), Reads: pl.From.Subject(in)}
	for _, t := range pl.Targets[typ] {
		plan.Writes = append(plan.Writes, t.Subject(out))
	}
	if pl.Sections[typ].Reshaped() {
		plan.Becomes = out.Name()
		return plan
	}
	plan.Adds = addedFields(in.Root(), out.Root())
	return plan
}

// An addition finds the fields of a schema that an earlier form of it does not have.
type addition struct {
	fields []string
	around []*codec.Node // a record type can contain itself
	left   int           // types to visit: n types, each used twice by the next, have 2^n places
}

// addedFields returns the fields of after, also within values, that are not in before.
func addedFields(before, after *codec.Node) []string {
	a := addition{left: 1 << 14}
	a.visit("", before, after)
	return a.fields
}

func (a *addition) visit(path string, before, after *codec.Node) {
	if a.left--; a.left < 0 || before == after || before.Kind != after.Kind || slices.Contains(a.around, after) {
		return
	}
	switch after.Kind {
	case codec.Array, codec.Map:
		a.visit(path+"[]", before.Elem, after.Elem)
	case codec.Union:
		for i := range min(len(before.Branches), len(after.Branches)) {
			a.visit(path, before.Branches[i], after.Branches[i])
		}
	case codec.Record:
		a.around = append(a.around, after)
		defer func() { a.around = a.around[:len(a.around)-1] }()
		if path != "" {
			path += "."
		}
		for i := range after.Fields {
			f := &after.Fields[i]
			if have := before.Field(f.Name); have != nil {
				a.visit(path+f.Name, have.Type, f.Type)
			} else {
				a.fields = append(a.fields, fmt.Sprintf("%s%s: %s", path, f.Name, f.Type))
			}
		}
	}
}
