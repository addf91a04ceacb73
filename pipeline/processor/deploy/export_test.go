package deploy

// Exported for tests in package deploy_test.
const (
	DeploymentKey = deploymentKey
	ExitChanges   = exitChanges
)

// Consequences is the table of consequences.
var Consequences = consequences

// Refuse, Text and Hint return the parts of a consequence.
func (c consequence) Refuse() editKind { return c.refuse }
func (c consequence) Text() string     { return c.text }
func (c consequence) Hint() string     { return c.hint }
