package deploy

import (
	"maps"

	"millrace/pipeline/kafka"
	"millrace/pipeline/topology"
)

// gaps calls f with each topic of the pipelines that deletes records which their source
// still has, once for each topic, and says why. Settings that are not declared are those
// of the cluster.
func gaps(pipelines []*topology.Pipeline, cluster kafka.Description, f func(topic, why string)) {
	seen := map[string]bool{}
	for _, pl := range pipelines {
		for _, t := range append(pl.Writes(), pl.DeadLetter) {
			why := topology.RetentionGap(pl.From.Name, settings(pl.From, cluster), settings(t, cluster))
			if why != "" && !seen[t.Name] {
				seen[t.Name] = true
				f(t.Name, why)
			}
		}
	}
}

// settings returns the settings that a topic has after an apply.
func settings(t *topology.Topic, cluster kafka.Description) map[string]string {
	all := map[string]string{}
	maps.Copy(all, cluster.Topics[t.Name].Config)
	maps.Copy(all, t.Config)
	return all
}
