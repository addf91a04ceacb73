package deploy

// Exported for tests in package deploy_test.
const (
	DeploymentKey = deploymentKey
	ExitChanges   = exitChanges
)
