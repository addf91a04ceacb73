package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// A deployment is an applied topology: the JSON value of the record with the key
// deploymentKey on the control topic.
type deployment struct {
	Format    int                           `json:"format"` // deploymentFormat
	Name      string                        `json:"name"`
	Hash      string                        `json:"hash"`
	Time      time.Time                     `json:"time"`
	By        string                        `json:"by"` // the version of the program that applied it
	Topics    map[string]deployedTopic      `json:"topics"`
	Schemas   map[string]int                `json:"schemas"` // ids by subject
	Pipelines map[string]deployedPipeline   `json:"pipelines"`
	Folds     map[string]deployedProjection `json:"projections"`
	Settings  map[string]string             `json:"settings,omitempty"` // see [topology.Topology.Settings]
}

const (
	deploymentFormat = 1
	deploymentKey    = "topology"
)

type deployedTopic struct {
	ID         string            `json:"id"`
	Partitions int               `json:"partitions"`
	Config     map[string]string `json:"config,omitempty"` // as declared
}

type deployedPipeline struct {
	From       string          `json:"from"`
	To         []string        `json:"to"`
	DeadLetter string          `json:"dead_letter"`
	Receipts   string          `json:"receipts,omitempty"`
	Guarantee  string          `json:"guarantee"`
	Stages     []deployedStage `json:"stages"`
}

type deployedStage struct {
	Name      string `json:"name"`
	Kind      string `json:"kind"`
	State     string `json:"state,omitempty"`     // its state topic; "" without state
	Remembers string `json:"remembers,omitempty"` // a duration, see [stage.Retention]
}

type deployedProjection struct {
	From      string `json:"from"`
	Snapshots string `json:"snapshots"`
	Fold      string `json:"fold"` // the hash of the fold
}

// deploy returns the deployment for the current state of the cluster. ids are the
// ids of schemas by subject.
func deploy(t *topology.Topology, cluster kafka.Description, ids map[string]int) *deployment {
	d := &deployment{
		Format: deploymentFormat, Name: t.Name, Hash: t.Hash(), Schemas: ids,
		Topics: map[string]deployedTopic{}, Pipelines: map[string]deployedPipeline{}, Folds: map[string]deployedProjection{},
		Settings: t.Settings(),
	}
	for _, spec := range declaredTopics(t, cluster) {
		have := cluster.Topics[spec.Name]
		d.Topics[spec.Name] = deployedTopic{have.ID, have.Partitions, spec.Config}
	}
	for _, pl := range t.Pipelines {
		p := deployedPipeline{From: pl.From.Name, DeadLetter: pl.DeadLetter.Name, Guarantee: pl.Guarantee, Stages: []deployedStage{}}
		if pl.Receipts != nil {
			p.Receipts = pl.Receipts.Name
		}
		for _, to := range pl.Writes() {
			p.To = append(p.To, to.Name)
		}
		for _, s := range pl.Stages {
			ds := deployedStage{Name: s.Name, Kind: s.Kind.Name}
			if _, ok := s.Built.(stage.Keeper); ok {
				ds.State = chain.StateTopic(t, pl, s.Name)
				ds.Remembers = stage.Retention(s.Built).String()
			}
			p.Stages = append(p.Stages, ds)
		}
		d.Pipelines[pl.Name] = p
	}
	for _, p := range t.Projections {
		d.Folds[p.Name] = deployedProjection{p.From.Name, p.Snapshots.Name, p.Fold.Hash()}
	}
	return d
}

// same reports whether two deployments are equal apart from their time and the
// version of the program. Either can be nil.
func (d *deployment) same(other *deployment) bool {
	if d == nil || other == nil {
		return false
	}
	a, b := *d, *other
	a.Time, a.By, b.Time, b.By = time.Time{}, "", time.Time{}, ""
	return cli.CompactJSON(a) == cli.CompactJSON(b)
}

// declaredTopics returns the topics that the processor creates. The projector creates
// snapshot topics.
func declaredTopics(t *topology.Topology, cluster kafka.Description) (specs []kafka.TopicSpec) {
	for _, topic := range t.Topics {
		if topic.Snapshots == nil {
			specs = append(specs, worker.TopicSpecs(topic)...)
		}
	}
	for _, pl := range t.Pipelines {
		partitions := cluster.Topics[pl.From.Name].Partitions
		if partitions == 0 {
			partitions = pl.From.Partitions
		}
		specs = append(specs, chain.StateTopics(t, pl, partitions)...)
	}
	return specs
}

// readDeployment returns the last deployment, or nil if there is none. damaged is the
// reason if its record cannot be read.
func readDeployment(ctx context.Context, w *worker.Worker) (d *deployment, damaged string, err error) {
	name := control.Topic(w.Topology)
	cluster, err := kafka.Describe(ctx, w.Kafka, []string{name}, nil, nil)
	if err != nil {
		return nil, "", err
	}
	if err := cluster.Hidden[name]; err != nil {
		return nil, "", fmt.Errorf("topic %s, which holds the last applied topology: %w", name, err)
	}
	if _, ok := cluster.Topics[name]; !ok {
		return nil, "", nil
	}
	var text []byte
	if _, err := kafka.ReadSettled(ctx, w.Kafka, name, 0, func(r *pipeline.Record) error {
		if string(r.Key) == deploymentKey {
			text = slices.Clone(r.Value)
		}
		return nil
	}); err != nil {
		return nil, "", err
	}
	if text == nil {
		return nil, "", nil
	}
	d, damaged, err = parseDeployment(text)
	if err != nil {
		return nil, "", fmt.Errorf("topic %s: %w", name, err)
	}
	return d, damaged, nil
}

// parseDeployment decodes a deployment. damaged is the reason if the record is none.
func parseDeployment(text []byte) (d *deployment, damaged string, err error) {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, err.Error(), nil
	}
	if head.Format > deploymentFormat {
		return nil, "", fmt.Errorf("the last applied topology has format %d, but this program supports %d: use a newer version", head.Format, deploymentFormat)
	}
	d = &deployment{}
	if err := json.Unmarshal(text, d); err != nil {
		return nil, err.Error(), nil
	}
	if head.Format < 1 {
		return nil, "it has no format", nil
	}
	return d, "", nil
}

// writeDeployment stores the topology and the current state of the cluster as the
// last deployment.
func writeDeployment(ctx context.Context, e *cli.Env, w *worker.Worker) error {
	name := control.Topic(w.Topology)
	if _, err := kafka.EnsureTopics(ctx, w.Kafka, []kafka.TopicSpec{control.TopicSpec(name)}, true); err != nil {
		return err
	}
	cluster, err := describeDeployed(ctx, w, nil)
	if err != nil {
		return err
	}
	ids := map[string]int{}
	for _, pl := range w.Topology.Pipelines {
		for i, s := range pl.Output {
			for _, topic := range pl.Targets[i] {
				subject := topic.Subject(s)
				if ids[subject], err = event.EnsureSchema(ctx, w.Registry, subject, s, false); err != nil {
					return err
				}
			}
		}
	}
	d := deploy(w.Topology, cluster, ids)
	d.Time, d.By = e.Now().UTC(), e.Build.Version
	text, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return kafka.WriteOnce(ctx, w.Kafka, &pipeline.Record{Topic: name, Partition: 0, Key: []byte(deploymentKey), Value: text, Time: d.Time})
}
