package topology

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"millrace/pipeline/stage"
)

// Settings returns a digest of each parameter that the topology sets, by the path of the
// parameter: topics/NAME/PARAM, pipelines/NAME/PARAM, pipelines/NAME/stages/STAGE/PARAM,
// projections/NAME/PARAM and so on. The digests do not show the values, which can be
// secrets. pipelines/NAME/stages is the order of the stages, and tables/NAME/rows the
// content of a file.
func (t *Topology) Settings() map[string]string { return t.settings }

// findSettings sets the plan's settings.
func (l *loader) findSettings(args stage.Args) {
	l.plan.settings = map[string]string{}
	for _, a := range args {
		switch a.Name {
		case "topics", "tables", "pipelines", "projections":
			for _, item := range a.Items {
				l.addSettings(a.Name+"/"+item.Key.Text, item.Args)
			}
		case "encryption":
			for _, item := range a.Items {
				l.addSettings(a.Name, item.Args)
			}
		}
	}
	for _, table := range l.plan.Tables {
		if table.File != "" {
			l.plan.settings["tables/"+table.Name+"/rows"] = digest(string(table.Text))
		}
	}
}

func (l *loader) addSettings(path string, args stage.Args) {
	for _, a := range args {
		if a.Name != "stages" {
			var text strings.Builder
			writeArgs(&text, stage.Args{a})
			l.plan.settings[path+"/"+a.Name] = digest(text.String())
			continue
		}
		var names []string
		for _, item := range a.Items {
			for _, one := range item.Args {
				name := one.Name
				if own, ok := one.Items[0].Args.Find("name"); ok {
					name = own.Value.Text
				}
				names = append(names, name)
				l.addSettings(path+"/stages/"+name, slices.DeleteFunc(slices.Clone(one.Items[0].Args), func(a stage.Arg) bool { return a.Name == "name" }))
			}
		}
		l.plan.settings[path+"/stages"] = digest(strings.Join(names, "\n"))
	}
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:6])
}

// Parameters returns the forms of the paths of [Topology.Settings]: NAME is * there, and
// the name of a stage is its kind.
func Parameters(kinds map[string]stage.Kind) []string {
	out := []string{"tables/*/rows"}
	add := func(path string, params []stage.Param) {
		for _, p := range params {
			out = append(out, path+"/"+p.Name)
		}
	}
	add("topics/*", topicParams)
	add("tables/*", tableParams)
	add("projections/*", projectionParams)
	add("encryption", encryptionParams)
	for _, p := range pipelineParams(kinds) {
		out = append(out, "pipelines/*/"+p.Name)
		if p.Name != "stages" {
			continue
		}
		for _, kind := range p.Params {
			add("pipelines/*/stages/"+kind.Name, slices.DeleteFunc(slices.Clone(kind.Params), func(p stage.Param) bool { return p.Name == "name" }))
		}
	}
	return out
}
