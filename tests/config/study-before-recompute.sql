BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'old');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MINIMIZE',1,1);
INSERT INTO "study_directions" VALUES(3,'MINIMIZE',1,2);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_system_attributes" VALUES(1,1,'study:metric_names','["map", "device_bytes", "trainable_params"]');
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'cst_study','{"format": 3, "version": "0.1.0", "started": "2026-11-29T07:36:01.978+00:00", "spec": {"objectives": ["map", "device_bytes", "trainable_params"], "budget": {"memory_bytes": null, "params": null}, "reference_point": {"map": 0.0, "device_bytes": 921922973.95, "trainable_params": 392125.60000000003}, "recipe": {"detector": "fcos", "backbone": "resnet18", "width": 0.5, "weights": "demo", "fpn_channels": 64, "anchor_scale": 0.5, "head_convs": 2, "data": "demo", "image_size_px": 128, "max_size_px": 128, "hflip": true, "method": "cst", "options": {}, "epochs": 18, "search_epochs": 1, "batch_size": 4, "accumulate": 1, "lr": null, "weight_decay": 0.0001, "warmup": 0.1, "clip_norm": 5.0, "precision": "auto", "memsave": true, "checkpoint": "neck", "eval_every": 3, "loader_workers": 0, "seed": 0}, "space": {"methods": ["head", "norm"], "shared": {"lr": {"float": [0.001, 0.01], "log": true}, "checkpoint": {"choice": ["none", "neck"]}}, "norm": {"checkpoint": {"choice": ["none", "all"]}}}, "data": "demo", "seed": 0, "sampler": "random", "target_device": "CUDA GPU (generic)", "limit_bytes": null, "inputs": {"n_classes": 6, "max_boxes": 5, "sizes": [[128, 128]]}, "eta": 2}}');
INSERT INTO "study_user_attributes" VALUES(2,1,'cst_beat:4cbdf2fdf0cb','1795937772.0');
INSERT INTO "study_user_attributes" VALUES(3,1,'cst_launch:4cbdf2fdf0cb','{"host": "vm", "pid": 24940, "created": 1795937740.19, "begun": "2026-11-29T07:36:02.011+00:00", "kind": "launch", "settings": {"recipe": {"detector": "fcos", "backbone": "resnet18", "width": 0.5, "weights": "demo", "fpn_channels": 64, "anchor_scale": 0.5, "head_convs": 2, "data": "demo", "image_size_px": 128, "max_size_px": 128, "hflip": true, "method": "cst", "epochs": 18, "search_epochs": 1, "batch_size": 4, "accumulate": 1, "lr": null, "weight_decay": 0.0001, "warmup": 0.1, "clip_norm": 5.0, "precision": "auto", "memsave": true, "checkpoint": "neck", "eval_every": 3, "loader_workers": 0, "seed": 0}, "options": {}, "space": "space.yaml", "data": "demo", "budget": {"memory_bytes": null, "params": null}, "limit_mem": null, "objectives": "map,device_bytes,trainable_params", "sampler": "random", "eta": 2, "seed": 0, "trials": 2, "workers": 1, "device": "cpu"}, "ended": "2026-11-29T07:36:19.639+00:00"}');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'method',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["head", "norm"]}}');
INSERT INTO "trial_params" VALUES(2,1,'lr',0.003,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(3,1,'checkpoint',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["none", "neck"]}}');
INSERT INTO "trial_params" VALUES(4,2,'method',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["head", "norm"]}}');
INSERT INTO "trial_params" VALUES(5,2,'norm.checkpoint',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["none", "all"]}}');
INSERT INTO "trial_params" VALUES(6,2,'lr',1.32928112822995950215e-03,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 0.01, "log": true}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_system_attributes" VALUES(1,1,'fixed_params','{"method": "head", "lr": 0.003, "checkpoint": "neck"}');
INSERT INTO "trial_system_attributes" VALUES(2,1,'constraints:memory','0.0');
INSERT INTO "trial_system_attributes" VALUES(3,1,'constraints:params','0.0');
INSERT INTO "trial_system_attributes" VALUES(4,1,'constraints:finite','0.0');
INSERT INTO "trial_system_attributes" VALUES(5,1,'constraints','[0.0]');
INSERT INTO "trial_system_attributes" VALUES(6,2,'constraints:memory','0.0');
INSERT INTO "trial_system_attributes" VALUES(7,2,'constraints:params','0.0');
INSERT INTO "trial_system_attributes" VALUES(8,2,'constraints:finite','0.0');
INSERT INTO "trial_system_attributes" VALUES(9,2,'constraints','[0.0]');
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'cst_suggested','{"config": {"method": "head", "lr": 0.003, "checkpoint": "neck"}, "estimate": {"device_bytes": 871374993, "reserved_bytes": 71374993, "active_bytes": 20357136, "trainable_params": 368652, "petl_params": 0, "breakdown": {"weights": 12689328, "optimiser": 2949216, "images": 786432, "activations": 662528, "gradients_and_transients": 3269632, "allocator": 51017857, "context": 800000000}, "target_device": "CUDA GPU (generic)"}, "correction": {"factor": 1.0, "n_trials": 0}, "launch": "4cbdf2fdf0cb", "at": "2026-11-29T07:36:05.396+00:00"}');
INSERT INTO "trial_user_attributes" VALUES(2,1,'cst_progress','{"history": [{"epoch": 1, "loss": 1.4925405478477478, "images_per_second": 30.229717096942366, "grad_norm": 33.079341888427734, "map": 0.14669659002413832, "map50": 0.28398643961097497}], "stopped": false}');
INSERT INTO "trial_user_attributes" VALUES(3,1,'cst_result','{"outcome": "complete", "petl_params": 0, "trainable_params": 368652, "map": 0.14669659002413832, "map50": 0.28398643961097497, "loss": 1.4925405478477478, "device_bytes": null, "reserved_bytes": null, "active_bytes": null, "images_per_second": 30.229717096942366, "seconds": 8.426132880000296, "train_seconds": 7.977213125999697, "epochs": 1, "reason": null, "device": "cpu", "history": [{"epoch": 1, "loss": 1.4925405478477478, "images_per_second": 30.229717096942366, "grad_norm": 33.079341888427734, "map": 0.14669659002413832, "map50": 0.28398643961097497}], "final": {"val": {"map": 0.14669659002413832, "map50": 0.28398643961097497, "map75": 0.13072451518672296, "map_small": 0.16589626909434568, "map_medium": 0.145076929052221, "map_large": null, "per_class": {"melon": 0.11269715406487302, "planet": 0.07584716735893232, "crate": 0.14883603079877986, "die": 0.13397416208500817, "lantern": 0.13930039878333608, "gem": 0.2695246270539004}, "images_per_second": 72.40837728138389}}, "limit_bytes": null, "held_bytes": null, "asked_bytes": null, "stage": null, "notes": ["features computed: keeping 52.8 MB would not be quicker (an image computed in 6.9 ms, written in 0.2, read in 0.1)"], "resumed_epochs": 0, "ran": true, "memory_source": "predicted", "state": "complete"}');
INSERT INTO "trial_user_attributes" VALUES(4,2,'cst_suggested','{"config": {"method": "norm", "checkpoint": "none", "lr": 0.0013292811282299595}, "estimate": {"device_bytes": 878021879, "reserved_bytes": 78021879, "active_bytes": 26687504, "trainable_params": 373452, "petl_params": 4800, "breakdown": {"weights": 12689328, "optimiser": 2987616, "images": 786432, "activations": 9240064, "gradients_and_transients": 984064, "allocator": 51334375, "context": 800000000}, "target_device": "CUDA GPU (generic)"}, "correction": {"factor": 1.0, "n_trials": 0}, "launch": "4cbdf2fdf0cb", "at": "2026-11-29T07:36:14.063+00:00"}');
INSERT INTO "trial_user_attributes" VALUES(5,2,'cst_progress','{"history": [{"epoch": 1, "loss": 1.5423278331756591, "images_per_second": 44.57758667030275, "grad_norm": 17.321203231811523, "map": 0.14005122929420086, "map50": 0.28654072110974965}], "stopped": false}');
INSERT INTO "trial_user_attributes" VALUES(6,2,'cst_result','{"outcome": "complete", "petl_params": 4800, "trainable_params": 373452, "map": 0.14005122929420086, "map50": 0.28654072110974965, "loss": 1.5423278331756591, "device_bytes": null, "reserved_bytes": null, "active_bytes": null, "images_per_second": 44.57758667030275, "seconds": 5.536299804999544, "train_seconds": 5.453081507999741, "epochs": 1, "reason": null, "device": "cpu", "history": [{"epoch": 1, "loss": 1.5423278331756591, "images_per_second": 44.57758667030275, "grad_norm": 17.321203231811523, "map": 0.14005122929420086, "map50": 0.28654072110974965}], "final": {"val": {"map": 0.14005122929420086, "map50": 0.28654072110974965, "map75": 0.11093865896505097, "map_small": 0.17205105433336484, "map_medium": 0.1387805108579607, "map_large": null, "per_class": {"melon": 0.11976238859043836, "planet": 0.0912922617483558, "crate": 0.15180578064975023, "die": 0.1185850677453066, "lantern": 0.12419283437324692, "gem": 0.2346690426581072}, "images_per_second": 78.6670776234222}}, "limit_bytes": null, "held_bytes": null, "asked_bytes": null, "stage": null, "notes": [], "resumed_epochs": 0, "ran": true, "memory_source": "predicted", "state": "complete"}');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,1.46696590024138318053e-01,'FINITE');
INSERT INTO "trial_values" VALUES(2,1,1,871374993.0,'FINITE');
INSERT INTO "trial_values" VALUES(3,1,2,368652.0,'FINITE');
INSERT INTO "trial_values" VALUES(4,2,0,1.40051229294200857422e-01,'FINITE');
INSERT INTO "trial_values" VALUES(5,2,1,878021879.0,'FINITE');
INSERT INTO "trial_values" VALUES(6,2,2,373452.0,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-29 07:36:05.375011','2026-11-29 07:36:14.041623');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-29 07:36:14.055872','2026-11-29 07:36:19.620908');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;