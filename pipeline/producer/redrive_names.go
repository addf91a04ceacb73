package producer

import (
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// letterNames are the names that the filters of a redrive can mean.
type letterNames struct{ reasons, stages, pipelines []string }

// add adds the names in a letter.
func (n *letterNames) add(l *deadletter.Letter) {
	addName(&n.reasons, string(l.Reason))
	addName(&n.stages, l.Stage)
	addName(&n.stages, l.Pipeline+"/"+l.Stage)
	addName(&n.pipelines, l.Pipeline)
}

func addName(names *[]string, name string) {
	if name != "" && !slices.Contains(*names, name) {
		*names = append(*names, name)
	}
}

// addKnown adds the names of the topology's pipelines and stages, and all reasons that
// are not of functions in Go.
func (n *letterNames) addKnown(t *topology.Topology) {
	for _, reason := range append(pipeline.Reasons(), stage.Reasons()...) {
		addName(&n.reasons, string(reason))
	}
	for _, pl := range t.Pipelines {
		addName(&n.pipelines, pl.Name)
		names := []string{deadletter.StageDecode, deadletter.StageEncode}
		for _, s := range pl.Stages {
			names = append(names, s.Name)
		}
		for _, name := range names {
			addName(&n.stages, name)
			addName(&n.stages, pl.Name+"/"+name)
		}
	}
}

// check refuses a filter that no letter can match: it is a slip, and every letter
// would be written to the end of its topic.
func (n *letterNames) check(f *letterFilter, t *topology.Topology) error {
	for _, name := range f.pipelines {
		if slices.ContainsFunc(t.Projections, func(p *topology.Projection) bool { return p.Name == name }) {
			return cli.Usagef("--pipeline: %s is a projection; its letters are of events that came after the end of their window, and would be late again: raise its grace and rebuild it", name)
		}
	}
	for _, c := range []struct {
		flag       string
		have, want []string
	}{{"reason", n.reasons, f.reasons}, {"stage", n.stages, f.stages}, {"pipeline", n.pipelines, f.pipelines}} {
		for _, name := range c.want {
			if slices.Contains(c.have, name) {
				continue
			}
			hint := expr.Suggest(name, c.have)
			if hint == "" {
				hint = "--dry-run lists the pending letters"
			}
			return cli.Usagef("--%s: there is no %s %q, neither in the topology nor in a pending letter; %s", c.flag, c.flag, name, hint)
		}
	}
	return nil
}
